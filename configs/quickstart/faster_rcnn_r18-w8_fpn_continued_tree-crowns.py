# The yardstick of distillation: the same student goes on for as long, without a teacher.
_base_ = './faster_rcnn_r18-w8_fpn_tree-crowns.py'
load_from = 'work_dirs/quickstart/faster_rcnn/student_seed0/latest.pth'
optimizer = dict(lr=0.001)
runner = dict(max_epochs=4)
