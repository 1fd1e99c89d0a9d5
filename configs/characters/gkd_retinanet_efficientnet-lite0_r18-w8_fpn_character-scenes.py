_base_ = [
    '../_base_/character_scenes_detection.py', '../_base_/schedule_digit_scenes.py',
    '../_base_/runtime.py'
]
model = dict(
    type='Distiller',
    teacher=dict(
        config='configs/characters/retinanet_efficientnet-lite0_fpn_character-scenes.py',
        checkpoint='work_dirs/quickstart/retinanet_character-scenes/teacher/latest.pth'),
    # As in the paper, the student has been trained before it is distilled.
    student=dict(
        config='configs/characters/retinanet_r18-w8_fpn_character-scenes.py',
        checkpoint='work_dirs/quickstart/retinanet_character-scenes/student_seed0/latest.pth'),
    # most characters are narrower than COCO's 30 pixels
    prototypes=dict(type='PrototypeGenerationModule', min_size=9, max_images=50),
    knowledge=[dict(type='RobustDistillingModule')])
optimizer = dict(lr=0.001)
runner = dict(max_epochs=2)
