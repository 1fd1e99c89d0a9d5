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
    cwd=[dict(type='CWD')])
