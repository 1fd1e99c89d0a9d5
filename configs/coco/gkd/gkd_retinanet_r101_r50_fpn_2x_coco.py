# RetinaNet: R101 teaches R50. Both start from the model zoo:
# python tools/checkpoints.py get configs/coco/gkd/gkd_retinanet_r101_r50_fpn_2x_coco.py
# The authors published no settings for RetinaNet. The learning rate is MMDetection's own for it,
# as of the plain student in ../detectors; all else is as for Faster R-CNN.
_base_ = [
    '../../_base_/coco_detection.py', '../../_base_/schedule_2x.py', '../../_base_/runtime.py'
]
model = dict(
    type='Distiller',
    teacher=dict(
        config='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        checkpoint='checkpoints/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth'),
    student=dict(
        config='mmdet::retinanet/retinanet_r50_fpn_2x_coco.py',
        checkpoint='checkpoints/retinanet_r50_fpn_2x_coco_20200131-fdb43119.pth'),
    prototypes=dict(
        type='PrototypeGenerationModule',
        num_prototypes=10,
        alpha=10.0,
        max_images=800,
        min_size=30,
        interval=1),
    knowledge=[
        dict(
            type='RobustDistillingModule',
            global_knowledge=dict(loss_weight=5.0),
            local_knowledge=dict(foreground_weight=1.0, background_weight=4.0),
            soft_label=dict(loss_weight=1.0, temperature=2.0))
    ])
optimizer = dict(lr=0.01)
