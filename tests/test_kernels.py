"""Real kernels: the next one gets ready while one is in use, and none is left behind."""

import ast

from nbclient.util import run_sync

from searle_lib.study import execution


def test_the_next_kernel_has_its_imports_and_none_is_left(tmp_path):
    ready = execution.ahead(tmp_path, 3)
    first, second = next(ready), next(ready)  # a third waits
    client = second.client()
    client.start_channels()
    run_sync(client.wait_for_ready)(timeout=120)
    question = "'searle_lib.evaluation.scores' in sys.modules, 'torch' in globals(), os.getcwd()"
    asked = client.execute("import os, sys", user_expressions={"found": question})
    reply = {"parent_header": {"msg_id": None}}
    while reply["parent_header"]["msg_id"] != asked:
        reply = run_sync(client.get_shell_msg)(timeout=60)
    found = ast.literal_eval(reply["content"]["user_expressions"]["found"]["data"]["text/plain"])
    assert found == (True, False, str(tmp_path))
    client.stop_channels()
    run_sync(first.shutdown_kernel)(now=True)
    waiting = ready.gi_frame.f_locals["waiting"]
    ready.close()
    assert not run_sync(waiting.is_alive)() and not run_sync(second.is_alive)()


def test_the_last_kernel_has_none_behind_it(tmp_path):
    ready = execution.ahead(tmp_path, 1)
    only = next(ready)
    assert ready.gi_frame.f_locals["waiting"] is None
    ready.close()
    assert not run_sync(only.is_alive)()
