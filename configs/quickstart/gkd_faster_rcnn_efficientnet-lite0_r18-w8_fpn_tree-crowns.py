_base_ = [
    '../_base_/tree_crowns_detection.py', '../_base_/schedule_quickstart.py',
    '../_base_/runtime.py'
]
model = dict(
    type='Distiller',
    teacher=dict(
        config='configs/quickstart/faster_rcnn_efficientnet-lite0_fpn_tree-crowns.py',
        checkpoint='work_dirs/quickstart/faster_rcnn_tree-crowns/teacher/latest.pth'),
    # As in the paper, the student has been trained before it is distilled.
    student=dict(
        config='configs/quickstart/faster_rcnn_r18-w8_fpn_tree-crowns.py',
        checkpoint='work_dirs/quickstart/faster_rcnn_tree-crowns/student_seed0/latest.pth'),
    # 100 images hold 800 trees; many are smaller than COCO's 30 pixels
    prototypes=dict(type='PrototypeGenerationModule', min_size=8, max_images=100),
    knowledge=[dict(type='RobustDistillingModule')])
optimizer = dict(lr=0.001)
runner = dict(max_epochs=4)
