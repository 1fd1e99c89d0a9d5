_base_ = '../_base_/tree_crowns.py'
model = dict(
    type='Distiller',
    teacher=dict(
        config='configs/mmdet3/quickstart/faster_rcnn_efficientnet-lite0_fpn_tree-crowns.py',
        checkpoint='work_dirs/quickstart/mmdet3/faster_rcnn_tree-crowns/teacher/epoch_5.pth'),
    # As in the paper, the student has been trained before it is distilled.
    student=dict(
        config='configs/mmdet3/quickstart/faster_rcnn_r18-w8_fpn_tree-crowns.py',
        checkpoint='work_dirs/quickstart/mmdet3/faster_rcnn_tree-crowns/student_seed0/epoch_6.pth'),
    # 100 images hold 800 trees; many are smaller than COCO's 30 pixels
    prototypes=dict(type='PrototypeGenerationModule', min_size=8, max_images=100),
    knowledge=[dict(type='RobustDistillingModule')])
optim_wrapper = dict(optimizer=dict(lr=0.001))
train_cfg = dict(max_epochs=4)
