# RetinaNet: R101 teaches R50.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'
custom_imports = dict(imports=['gkd'], allow_failed_imports=False)
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        checkpoint='checkpoints/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth'),
    student=dict(
        config='mmdet::retinanet/retinanet_r50_fpn_2x_coco.py',
        checkpoint='checkpoints/retinanet_r50_fpn_2x_coco_20200131-fdb43119.pth'),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[dict(type='RobustDistillingModule')])
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))
custom_hooks = [dict(type='PrototypeHook'), dict(type='FiniteLossHook'), dict(type='ReportHook')]
