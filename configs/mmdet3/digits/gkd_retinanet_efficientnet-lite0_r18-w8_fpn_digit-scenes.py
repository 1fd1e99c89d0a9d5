_base_ = '../_base_/digit_scenes.py'
model = dict(
    type='Distiller',
    teacher=dict(
        config='configs/mmdet3/digits/retinanet_efficientnet-lite0_fpn_digit-scenes.py',
        checkpoint='work_dirs/quickstart/mmdet3/retinanet_digit-scenes/teacher/epoch_3.pth'),
    # As in the paper, the student has been trained before it is distilled.
    student=dict(
        config='configs/mmdet3/digits/retinanet_r18-w8_fpn_digit-scenes.py',
        checkpoint='work_dirs/quickstart/mmdet3/retinanet_digit-scenes/student_seed0/epoch_8.pth'),
    # candidates are 660 digits; most digits are narrower than COCO's 30 pixels
    prototypes=dict(type='PrototypeGenerationModule', min_size=9, max_images=50),
    knowledge=[dict(type='RobustDistillingModule')])
optim_wrapper = dict(optimizer=dict(lr=0.001))
train_cfg = dict(max_epochs=2)
