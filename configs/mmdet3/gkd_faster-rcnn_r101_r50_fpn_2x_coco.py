# Faster R-CNN: R101 teaches R50.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py'
custom_imports = dict(imports=['gkd'], allow_failed_imports=False)
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
        checkpoint='checkpoints/faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth'),
    student=dict(
        config='mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py',
        checkpoint='checkpoints/faster_rcnn_r50_fpn_2x_coco_bbox_mAP-0.384_20200504_210434-a5d8aa15.pth'),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[dict(type='RobustDistillingModule')])
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))
custom_hooks = [dict(type='PrototypeHook'), dict(type='FiniteLossHook'), dict(type='ReportHook')]
