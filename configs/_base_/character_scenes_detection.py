# 2400 training and 400 validation scenes of 256x256 pixels with characters of 80 classes,
# made by gkd.datasets.prepare_character_scenes(); shown like the digit scenes.
_base_ = './digit_scenes_detection.py'
data_root = 'data/character_scenes/'
classes = tuple('ABCDEFGHJKLMNOPQRSTUVWXYZ' '23456789' 'abdefghmnqrt'
                'ΓΔΘΛΞΠΣΦΨΩ' 'αβγδεζθλμξπσφψω' '&%#@$?€£¥§')
train = dict(classes=classes, ann_file=data_root + 'train.json', img_prefix=data_root + 'images/')
val = dict(classes=classes, ann_file=data_root + 'val.json', img_prefix=data_root + 'images/')
data = dict(train=train, val=val, test=val)
del train, val
