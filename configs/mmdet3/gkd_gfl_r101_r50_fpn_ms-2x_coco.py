# GFL: R101 teaches R50.
_base_ = 'mmdet::gfl/gfl_r50_fpn_ms-2x_coco.py'
custom_imports = dict(imports=['gkd'], allow_failed_imports=False)
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
        checkpoint='checkpoints/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth'),
    student=dict(
        config='mmdet::gfl/gfl_r50_fpn_ms-2x_coco.py',
        checkpoint='checkpoints/gfl_r50_fpn_mstrain_2x_coco_20200629_213802-37bb1edc.pth'),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[dict(type='RobustDistillingModule')])
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))
custom_hooks = [dict(type='PrototypeHook'), dict(type='FiniteLossHook'), dict(type='ReportHook')]
