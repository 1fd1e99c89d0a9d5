# FCOS: R101 teaches R50 at the ground truth, without soft labels: it has no anchors.
_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_ms-640-800-2x_coco.py'
custom_imports = dict(imports=['gkd'], allow_failed_imports=False)
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
        checkpoint='checkpoints/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco-511424d6.pth'),
    student=dict(
        config='mmdet::fcos/fcos_r50-caffe_fpn_gn-head_ms-640-800-2x_coco.py',
        checkpoint='checkpoints/fcos_r50_caffe_fpn_gn-head_mstrain_640-800_2x_coco-d92ceeea.pth'),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[dict(type='RobustDistillingModule', instances='gt', soft_label=None)])
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))
custom_hooks = [dict(type='PrototypeHook'), dict(type='FiniteLossHook'), dict(type='ReportHook')]
