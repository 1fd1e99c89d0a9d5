_base_ = [
    '../_base_/digit_scenes_detection.py', '../_base_/schedule_digit_scenes.py',
    '../_base_/runtime.py'
]
model = dict(
    type='Distiller',
    teacher=dict(
        config='configs/digits/faster_rcnn_efficientnet-lite0_fpn_digit-scenes.py',
        checkpoint='work_dirs/digits/faster_rcnn/teacher/latest.pth'),
    student=dict(config='configs/digits/faster_rcnn_r18-w8_fpn_digit-scenes.py'),
    # 100 images hold 700 digits; few are larger than COCO's 30 pixels both ways
    prototypes=dict(type='PrototypeGenerationModule', min_size=12, max_images=100),
    knowledge=[
        dict(
            type='RobustDistillingModule',
            # summed over batch-normalised maps, it would drown the detection losses
            local_knowledge=dict(level_reduction='mean'))
    ])
