# GFL: R101 teaches R50, with the student's own data and schedule. Its one anchor a cell lets it be
# taught at its positives, with soft labels, as RetinaNet is.
_base_ = '../detectors/gfl_r50_fpn_mstrain_2x_coco.py'
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='mmdet::gfl/gfl_r101_fpn_mstrain_2x_coco.py',
        checkpoint='checkpoints/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth'),
    student=dict(
        config='mmdet::gfl/gfl_r50_fpn_mstrain_2x_coco.py',
        checkpoint='checkpoints/gfl_r50_fpn_mstrain_2x_coco_20200629_213802-37bb1edc.pth'),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[dict(type='RobustDistillingModule')])
