# RTMDet: s teaches tiny.
# The student starts and trains as its own config says; prototypes are generated every 10 epochs.
_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
custom_imports = dict(imports=['gkd'], allow_failed_imports=False)
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py',
        checkpoint='checkpoints/rtmdet_s_8xb32-300e_coco_20220905_161602-387a891e.pth'),
    student=dict(config='mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'),
    prototypes=dict(type='PrototypeGenerationModule', interval=10),
    knowledge=[dict(type='RobustDistillingModule')])
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))
custom_hooks = [
    dict(type='PrototypeHook'), dict(type='FiniteLossHook'), dict(type='ReportHook'),
    *_base_.custom_hooks]
