# A two-stage teacher for a one-stage student. They share the strides 8, 16 and 32, and classify
# different boxes: there are no soft labels.
_base_ = './gkd_retinanet_efficientnet-lite0_r18-w8_fpn_digit-scenes.py'
model = dict(
    teacher=dict(
        config='configs/mmdet3/digits/faster_rcnn_efficientnet-lite0_fpn_digit-scenes.py',
        checkpoint='work_dirs/quickstart/mmdet3/faster_rcnn_digit-scenes/teacher/epoch_3.pth'),
    knowledge=[dict(type='RobustDistillingModule', soft_label=None)])
