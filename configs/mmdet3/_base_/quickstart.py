# What the quickstart's configs share, whatever their data; for MMDetection 2 it is in
# configs/_base_/schedule_quickstart.py and configs/_base_/runtime.py.
default_scope = 'mmdet'
custom_imports = dict(imports=['gkd'], allow_failed_imports=False)  # registers a backbone, too
# what EfficientNet-Lite0's ImageNet weights expect
preprocessor = dict(
    type='DetDataPreprocessor', mean=[127] * 3, std=[128] * 3, bgr_to_rgb=True,
    pad_size_divisor=32)
dataset = dict(type='CocoDataset', data_prefix=dict(img='images/'))
train_dataloader = dict(
    batch_size=8,
    num_workers=0,  # on the CPU more processes would only share its cores
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        **dataset,
        ann_file='train.json',
        filter_cfg=dict(filter_empty_gt=True, min_size=32)))
val_dataloader = test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, ann_file='val.json', test_mode=True))
pack_test_inputs = dict(
    type='PackDetInputs',
    meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
val_evaluator = test_evaluator = dict(type='CocoMetric', metric='bbox')
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=6, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.002, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', eta_min=0, by_epoch=True, convert_to_iter_based=True)
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(type='ResumableCheckpointHook', interval=1, max_keep_ckpts=2))
cpu_channels_last = True  # faster on the CPU
custom_hooks = [dict(type='PrototypeHook'), dict(type='FiniteLossHook'), dict(type='ReportHook')]
randomness = dict(seed=0)
