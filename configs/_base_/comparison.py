# What tools/compare.sh trains a student with besides the distillation config's own `knowledge`,
# which it calls `gkd`. A distillation config may replace lines and add its own:
#     methods = dict(fgd=[dict(type='FGD', ...)], mine=[dict(type='MyKnowledge')])
methods = dict(
    fgfi=[dict(type='FGFI')],
    defeat=[dict(type='DeFeat')],
    fbkd=[dict(type='FBKD')],
    gid=[dict(type='GID')],
    pfi=[dict(type='PFI')],
    pkd=[dict(type='PKD')],
    fgd=[dict(type='FGD')],
    mgd=[dict(type='MGD')],
    cwd=[dict(type='CWD')],
    rkd=[dict(type='RKD')])

# `gkd` with some settings of its `model` changed; trained if they are named: --methods no-global
variants = {
    # without one of its parts
    'no-global': {'knowledge.0.global_knowledge': None},
    'no-local': {'knowledge.0.local_knowledge': None},
    'no-soft': {'knowledge.0.soft_label': None},
    'no-robust': {'knowledge.0.robust': False},
    # one kind of knowledge alone, still weighed by trust
    'global-only': {'knowledge.0.local_knowledge': None, 'knowledge.0.soft_label': None},
    'local-only': {'knowledge.0.global_knowledge': None, 'knowledge.0.soft_label': None},
    'soft-only': {'knowledge.0.global_knowledge': None, 'knowledge.0.local_knowledge': None},
    # global knowledge where the teacher tells classes apart, with the rest and alone
    'class-space': {'knowledge.0.global_knowledge': dict(space='classes')},
    'class-space-only': {'knowledge.0.global_knowledge': dict(space='classes'),
                         'knowledge.0.local_knowledge': None, 'knowledge.0.soft_label': None},
    # local knowledge on the two finest levels only
    'no-global-fine': {'knowledge.0.global_knowledge': None,
                       'knowledge.0.local_knowledge': dict(levels=[0, 1])},
    'class-space-fine': {'knowledge.0.global_knowledge': dict(space='classes'),
                         'knowledge.0.local_knowledge': dict(levels=[0, 1])},
    # global knowledge as in the paper, but each instance on the level of its size only
    'own-levels': {'knowledge.0.global_knowledge': dict(levels='own')},
    # the weights of global and local knowledge stay as they are at the start
    'no-decay': {'knowledge.0.decay': False},
    # adaptation layers that start near 0
    'quiet-start': {'knowledge.0.local_knowledge.quiet_start': True},
    # a one-stage student that starts with the teacher's neck and head, as FGD's and MGD's do
    'inherit': {'student.inherit': ['neck', 'bbox_head']},
    # prototypes per class and level; 10 by default
    'k1': {'prototypes.num_prototypes': 1},
    'k5': {'prototypes.num_prototypes': 5},
    'k20': {'prototypes.num_prototypes': 20},
    # weight of the disagreement between the two spaces' coefficients; 10 by default
    'alpha0': {'prototypes.alpha': 0},
    'alpha1': {'prototypes.alpha': 1},
    'alpha100': {'prototypes.alpha': 100},
    # the prototypes of the student that training starts from, for good
    'never-refreshed': {'prototypes.interval': 1000000},
    # controls of the search
    'random-prototypes': {'prototypes.selection': 'random'},
    'kmeans-prototypes': {'prototypes.selection': 'kmeans'},
    'teacher-prototypes': {'prototypes.selection': 'teacher'},
    'student-prototypes': {'prototypes.selection': 'student'},
}
