# FCOS: R101 teaches R50, with the student's own data and schedule. FCOS has no anchors: it is
# taught at the ground truth, without soft labels.
_base_ = '../detectors/fcos_r50_caffe_fpn_gn-head_mstrain_640-800_2x_coco.py'
model = dict(
    _delete_=True,
    type='Distiller',
    teacher=dict(
        config='mmdet::fcos/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco.py',
        checkpoint='checkpoints/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco-511424d6.pth'),
    student=dict(
        config='mmdet::fcos/fcos_r50_caffe_fpn_gn-head_mstrain_640-800_2x_coco.py',
        checkpoint='checkpoints/fcos_r50_caffe_fpn_gn-head_mstrain_640-800_2x_coco-d92ceeea.pth'),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[dict(type='RobustDistillingModule', instances='gt', soft_label=None)])
