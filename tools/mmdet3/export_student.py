#!/usr/bin/env python
"""The former place of tools/export_student.py, which is for both MMDetections."""

import os.path as osp
import runpy

if __name__ == '__main__':
    tools = osp.dirname(osp.dirname(osp.abspath(__file__)))
    runpy.run_path(osp.join(tools, 'export_student.py'), run_name='__main__')
