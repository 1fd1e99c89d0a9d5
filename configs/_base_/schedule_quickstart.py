# 6 epochs of 53 steps with 8 images
optimizer = dict(type='AdamW', lr=0.002, weight_decay=0.05)
optimizer_config = dict(grad_clip=None)
lr_config = dict(
    policy='CosineAnnealing', by_epoch=False, min_lr=0, warmup='linear', warmup_iters=30,
    warmup_ratio=0.001)
runner = dict(type='EpochBasedRunner', max_epochs=6)
# faster on the CPU
cpu_channels_last = True
