# Faster R-CNN: R101 teaches R50. Both start from the model zoo:
# python tools/checkpoints.py get configs/coco/gkd/gkd_faster_rcnn_r101_r50_fpn_2x_coco.py
_base_ = [
    '../../_base_/coco_detection.py', '../../_base_/schedule_2x.py', '../../_base_/runtime.py'
]
model = dict(
    type='Distiller',
    teacher=dict(
        config='mmdet::faster_rcnn/faster_rcnn_r101_fpn_2x_coco.py',
        checkpoint='checkpoints/faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth'),
    student=dict(
        config='mmdet::faster_rcnn/faster_rcnn_r50_fpn_2x_coco.py',
        checkpoint='checkpoints/faster_rcnn_r50_fpn_2x_coco_bbox_mAP-0.384_20200504_210434-a5d8aa15.pth'),
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
