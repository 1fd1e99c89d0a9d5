#!/usr/bin/env python
"""torchrun with its own options, ending with the failed process's message and exit status.

torchrun itself appends a traceback of its own, forty lines that bury the message. After a signal
such as SIGTERM, which ends the processes without a word, it says that they were stopped. It would
start processes again that have ended with a message about a setting or a file, which would only
come again; here the first such message ends all.
"""

import logging
import os
import signal
import sys

import torch.distributed.launcher.api
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousConnectionError
from torch.distributed.run import main, parse_args

TO_BE_MENDED = 2  # exit status of a process that met an error which the user must correct


class Agent(LocalElasticAgent):
    """torchrun's, which watches the processes of a node; it starts none again in vain."""

    def _monitor_workers(self, worker_group):
        result = super()._monitor_workers(worker_group)
        if TO_BE_MENDED in (failure.exitcode for failure in result.failures.values()):
            self._remaining_restarts = 0
        return result


def explain(error):
    """Exit status of the process that failed first; says so if it could not speak itself."""
    rank, failure = error.get_first_failure()
    if failure.exitcode > 0:
        return failure.exitcode
    from gkd.commands.processes import how_it_ended  # takes seconds, which no start should wait
    print(f'\nerror: process {rank} {how_it_ended(failure.exitcode)}', file=sys.stderr)
    return 128 - failure.exitcode


def stop(number):
    """End by the signal that ended the processes; after Ctrl-C the first of them has said so."""
    from gkd.commands.ending import STOPPED, end_by  # as above
    if number != signal.SIGINT:
        print(STOPPED, file=sys.stderr, flush=True)
    end_by(number)


if __name__ == '__main__':
    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)
    if parse_args(sys.argv[1:]).max_restarts:
        # Processes that are started again would find the addresses of their dead forerunners in
        # the store that torchrun shares with all of them; so every start gets a store of its own.
        os.environ.setdefault('TORCH_DISABLE_SHARE_RDZV_TCP_STORE', '1')
    torch.distributed.launcher.api.LocalElasticAgent = Agent
    try:
        main()
    except ChildFailedError as error:
        sys.exit(explain(error))
    except SignalException as error:
        stop(error.sigval)
    except (RendezvousClosedError, RendezvousConnectionError):
        print('\nerror: the processes on another machine have ended for good; see what is said '
              'there.', file=sys.stderr)
        sys.exit(1)
    except RuntimeError as error:  # of a kind that torch 2.1 does not name
        if 'address already in use' not in str(error).lower():
            raise
        print('\nerror: the port at which the processes meet is taken by another program, perhaps '
              'another training: set MASTER_PORT to another one; without it, on one machine, a '
              'free port is found.', file=sys.stderr)
        sys.exit(TO_BE_MENDED)
