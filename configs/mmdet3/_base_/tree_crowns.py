# 480 training and 40 validation tiles of 256x256 pixels,
# made by gkd.datasets.prepare_tree_crowns(); 6 epochs of 53 steps with 8 images.
_base_ = './quickstart.py'
dataset = dict(data_root='data/tree_crowns/', metainfo=dict(classes=('tree', )))
train_dataloader = dict(
    dataset=dict(
        **dataset,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs')
        ]))
val_dataloader = test_dataloader = dict(
    dataset=dict(
        **dataset,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(256, 256), keep_ratio=True),
            dict(type='LoadAnnotations', with_bbox=True),
            _base_.pack_test_inputs
        ]))
val_evaluator = test_evaluator = dict(ann_file='data/tree_crowns/val.json')
