# 1600 training and 200 validation scenes of 256x256 pixels,
# made by gkd.datasets.prepare_digit_scenes(); 8 epochs of 200 steps with 8 images.
_base_ = './quickstart.py'
dataset = dict(
    data_root='data/digit_scenes/',
    metainfo=dict(classes=('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')))
resize = dict(type='Resize', scale=(192, 192), keep_ratio=True)  # for speed
train_dataloader = dict(
    dataset=dict(
        **dataset,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            resize,  # and no flip: a mirrored digit is none
            dict(type='PackDetInputs')
        ]))
val_dataloader = test_dataloader = dict(
    dataset=dict(
        **dataset,
        pipeline=[
            dict(type='LoadImageFromFile'),
            resize,
            dict(type='LoadAnnotations', with_bbox=True),
            _base_.pack_test_inputs
        ]))
val_evaluator = test_evaluator = dict(ann_file='data/digit_scenes/val.json')
train_cfg = dict(max_epochs=8)
