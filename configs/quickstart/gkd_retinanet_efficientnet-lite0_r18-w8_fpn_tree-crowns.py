_base_ = [
    '../_base_/tree_crowns_detection.py', '../_base_/schedule_quickstart.py',
    '../_base_/runtime.py'
]
model = dict(
    type='Distiller',
    teacher=dict(
        config='configs/quickstart/retinanet_efficientnet-lite0_fpn_tree-crowns.py',
        checkpoint='work_dirs/quickstart/retinanet/teacher/latest.pth'),
    student=dict(config='configs/quickstart/retinanet_r18-w8_fpn_tree-crowns.py'),
    prototypes=dict(type='PrototypeGenerationModule'),
    knowledge=[
        dict(
            type='RobustDistillingModule',
            # summed over batch-normalised maps, it would drown the detection losses
            local_knowledge=dict(level_reduction='mean'))
    ])
