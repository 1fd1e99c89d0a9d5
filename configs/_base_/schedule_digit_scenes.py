# 8 epochs of 200 steps with 8 images
_base_ = './schedule_quickstart.py'
runner = dict(max_epochs=8)
