"""Hostile code: nothing of the machine is reached, nothing runs on, and the caller lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.sample import SampleFile
from stages.eval.commands import answer_command
from stages.eval.project import Project, make_project
from stages.eval.sandbox import Limits, Sandbox

LIMITS = Limits(seconds=0.2)
CALM = Limits(seconds=60)  # for code that is not to be stopped by the clock
LATE = 30.0  # seconds that a process may be late on a busy machine; what is not stopped takes for ever
TRIES = 10  # of a code that takes milliseconds: one of them has its time on a busy machine too
AT_WORK = 0.3  # seconds of computing by which a process is surely in its code
MEMORY = 400 * 2**20  # bytes that both processes together may ever hold
SECRET = "a secret of this machine"
# SECRET and VICTIM stand for the paths of a file to read and of one to write.
HOSTILE = {
    # reaching for the machine
    "system": "import os\nprint(os.system('id'))",
    "popen": "import os\nprint(os.popen('id').read())",
    "environ": "import os\nprint(os.environ['SANDBOX_SECRET'])",
    "getenv": "import os\nprint(os.getenv('SANDBOX_SECRET'))",
    "subprocess": "import subprocess\nprint(subprocess.run(['id']))",
    "socket": "import socket\nsocket.create_connection(('127.0.0.1', 80))",
    "ctypes": "import ctypes\nctypes.string_at(0)",
    "import": "print(__import__('os').getcwd())",
    "importlib": "import importlib\nimportlib.import_module('subprocess')",
    "open": "print(open('SECRET').read())",
    "open to write": "open('VICTIM', 'w').write('x')",
    "path": "from pathlib import Path\nprint(Path('SECRET').read_text())",
    "path to write": "from pathlib import Path\nPath('VICTIM').write_text('x')",
    "list": "import os\nprint(os.listdir('/'))",
    "read": "print(read_file('SECRET'))",
    "climb": "print(read_file('../' * 20 + 'SECRET'.lstrip('/')))",
    "write": "write_file('VICTIM', 'x')",
    "cat": "print(run_command('cat SECRET'))",
    "touch": "print(run_command('touch VICTIM'))",
    "redirect": "print(run_command('echo x > VICTIM'))",
    "proc": "print(open('/proc/self/environ').read())",
    # reaching for the interpreter around it
    "subclasses": "print(().__class__.__base__.__subclasses__())",
    "mro": "print(type(typecheck('.')).__mro__[1].__subclasses__())",
    "globals": "print(typecheck.__globals__['os'])",
    "builtins": "print(__builtins__)",
    "init": "print(typecheck('.').__class__.__init__.__globals__)",
    "getattr": "print(getattr(typecheck('.'), '__' + 'dict__'))",
    "wrapper": "print(typecheck('.').reads, typecheck('.').value, typecheck('.').class_type)",
    "construct": "type(typecheck('.'))()",
    "method": "print(typecheck('.').model_dump.__self__.__init__)",
    "indent": "print(typecheck('.').model_dump_json(indent=10**9))",
    "include": "typecheck('.').model_dump(include={'errors'}, context=typecheck)",
    "private": "print(typecheck('.')._copy_and_set_values({}, set(), deep=True))",
    "format": "print('{0.__class__.__init__.__globals__}'.format(typecheck('.')))",
    "f-string": "x = typecheck('.')\nprint(f'{x.__class__.__mro__!r:>{10**9}}')",
    "frame": "try:\n    1 / 0\nexcept Exception as e:\n    print(e.__traceback__.tb_frame.f_globals)",
    "eval": "print(eval(\"__import__('os')\"))",
    "exec": "exec('import os; os.abort()')",
    "compile": "exec(compile('1', 'a', 'exec'))",
    # taking too much
    "loop": "while True:\n    pass",
    "stubborn loop": "while 1:\n  try:\n    while 1:\n      pass\n  except BaseException:\n    pass",
    "loop at the end": "try:\n    1 / 0\nfinally:\n    while True:\n        pass",
    "loop of calls": "while True:\n    try:\n        typecheck('.')\n    except BaseException:\n        pass",
    "loop in exec": "exec('while True: pass')",
    "count": "sum(range(10**12))",
    "endless list": "import itertools\nlist(itertools.count())",
    "product": "import itertools\nprint(len(list(itertools.product(range(1000), repeat=5))))",
    "recursion": "def f():\n    f()\nf()",
    "recursion in repr": "class A:\n    def __repr__(self):\n        return repr(self)\nprint(A())",
    "recursion in key": "def f(x):\n    return sorted([1, 2], key=f)\nf(1)",
    "text": "'a' * 10**10",
    "list growth": "x = []\nwhile True:\n    x.append('a' * 1000 + str(len(x)))",
    "doubling": "x = 'a'\nwhile True:\n    x += x",
    "power": "print(10**10**10)",
    "shift": "1 << 10**12",
    "factorial": "import math\nmath.factorial(10**7)",
    "bytes": "bytes(10**11)",
    "range": "list(range(10**12))",
    "pad": "print('{:>1000000000}'.format(1), '%1000000000d' % 1)",
    "replace": "('a' * 10**5).replace('a', 'b' * 10**6)",
    "join": "'a'.join(['b' * 10**5] * 10**6)",
    "digits": "int('9' * 10**7)",
    "print": "while True:\n    print('x' * 1000)",
    "print a lot": "print('x' * 10**7)",
    "big argument": "read_file('a' * 10**7)",
    "big file": "for n in range(10**4):\n    write_file(f'{n}', 'a' * 10**6)",
    "big output": "write_file('a', 'a' * 999_000)\nprint(len(run_command('cat ' + 'a ' * 498)))",
    "big search": "write_file('a', 'a\\n' * 499_000)\nprint(len(run_command('grep -r a ' + './' * 490)))",
    "big names": "while 1:\n  try:\n    typecheck(**{'a' * 10**6: 1})\n  except TypeError:\n    pass",
    "sleep": "import time\ntime.sleep(10**6)",
    "async": "import asyncio\nasync def main():\n    await asyncio.sleep(10**6)\nasyncio.run(main())",
    "gather": "import asyncio\nasync def f():\n    return await asyncio.gather(f(), f())\nasyncio.run(f())",
    "backtracking": "import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')",
    "back reference": "import re\nre.match(r'(a|a|b)*\\1c$', 'a' * 60 + 'b')",
    # breaking the reader
    "parentheses": "x = " + "(" * 5000 + ")" * 5000,
    "brackets": "x = " + "[" * 190 + "]" * 190,
    "minus": "x = " + "-" * 100_000 + "1",
    "not": "x = " + "not " * 50_000 + "1",
    "long sum": "x = " + "+".join(["1"] * 100_000),
    "blocks": "\n".join(" " * n + "if 1:" for n in range(300)) + "\n" + " " * 300 + "x = 1",
    "nul": "x = 1\0\nprint(x)",
    "surrogate": "print('\ud800', typecheck('\udfff'))",
    "controls": "\x1b[2J\x07\r\x0c print(1)",
    "self list": "x = []\nx.append(x)\nprint(x, x == x)\nread_file(x)",
    "deep list": "x = []\nfor n in range(10**5):\n    x = [x]\nprint(x == [x])\nread_file(x)",
    "deep dict": "x = {}\nfor n in range(10**5):\n    x = {'a': x}\nread_file(x)",
    "deep dict shown": "x = {}\nfor n in range(10**5):\n    x = {'a': x}\nprint(x)",
    "deep tuple": "x = ()\nfor n in range(10**5):\n    x = (x,)\nread_file(path=x)",
    "deep names": "x = ()\nfor n in range(10**5):\n    x = (x,)\ntypecheck(**{'a': x})",
    "deep exception": "x = []\nfor n in range(10**5):\n    x = [x]\nraise ValueError(x)",
    "deep dict in an exception": "x = {}\nfor n in range(10**5):\n    x = {'a': x}\nraise KeyError(x)",
    "deep result": "x = ()\nfor n in range(10**5):\n    x = (x,)\nx",
    "deep instance": "class A:\n    def __init__(self, x):\n        self.x = x\n"
    "a = None\nfor n in range(10**4):\n    a = A(a)\na",
    "deep json": "import json\nprint(json.loads('[' * 10**5))",
    "redefine": "def print(*a):\n    while True:\n        pass\nprint(1)",
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(LIMITS) as sandbox:
        yield sandbox


def worker_memory() -> int:
    """Bytes that the sandbox's process holds, 0 where it has just died."""
    try:
        return sum(child.memory_info().rss for child in psutil.Process().children(recursive=True))
    except psutil.NoSuchProcess:
        return 0


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_code_is_contained(
    name: str, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, victim = tmp_path / "secret.txt", tmp_path / "victim.txt"
    secret.write_text(SECRET, encoding="utf-8")
    monkeypatch.setenv("SANDBOX_SECRET", SECRET)
    code = HOSTILE[name].replace("SECRET", str(secret)).replace("VICTIM", str(victim))
    started, held = time.monotonic(), psutil.Process().memory_info().rss
    run = sandbox.run_code(code, make_project())
    seconds = time.monotonic() - started
    assert SECRET not in run.model_dump_json()
    assert not victim.exists()
    assert secret.read_text(encoding="utf-8") == SECRET
    assert seconds < 2 * (LIMITS.seconds + 1.0) + LATE, run.error
    assert len(run.printed) <= LIMITS.printed
    assert psutil.Process().memory_info().rss - held + worker_memory() < MEMORY
    assert any(
        sandbox.run_code("print(typecheck('.').error_count)", make_project()).printed == "7\n"
        for _ in range(TRIES)
    )


def test_what_commands_answer_stays_small() -> None:
    files = {"a": SampleFile(path="a", text="a" * 999_000), "b": SampleFile(path="b", text="a\n" * 400_000)}
    project = Project(files, {})
    for command in ("cat " + "a " * 498, "cat a b", "grep -r a " + "./" * 490, "grep -rn a ."):
        assert answer_command(command, project) is None
    for command in ("cat a", "wc -l b", "head -n 400000 b", "grep -rn nothing ."):
        assert len(answer_command(command, project) or "") <= 1_000_000, command


def kill_workers(others: set[psutil.Process]) -> None:
    """End the processes of sandboxes that were begun since."""
    for worker in set(psutil.Process().children()) - others:
        with suppress(psutil.NoSuchProcess):
            worker.kill()


def kill_at_work(others: set[psutil.Process], ended: threading.Event) -> None:
    """End the process of a sandbox that was begun since, when it computes."""
    while not ended.wait(0.01):
        for worker in set(psutil.Process().children()) - others:
            with suppress(psutil.NoSuchProcess):
                if worker.cpu_times().user >= AT_WORK:
                    worker.kill()
                    return


def test_a_sandbox_that_dies_is_replaced() -> None:
    others, ended = set(psutil.Process().children()), threading.Event()
    with Sandbox(CALM) as sandbox:
        killer = threading.Thread(target=kill_at_work, args=[others, ended])
        killer.start()
        run = sandbox.run_code("while True:\n    pass", make_project())
        ended.set()
        killer.join()
        assert (run.outcome, run.works, run.timed_out) == ("unsupported", None, False)
        assert run.error is not None
        assert run.error.startswith("SandboxCrash: ")
        assert sandbox.run_code("print(2)", make_project()).printed == "2\n"


def test_a_process_that_dies_behind_its_code_takes_no_other_run_with_it() -> None:
    """What ends it there, such as the end of a deep structure, may come at any moment."""
    others = set(psutil.Process().children())
    with Sandbox(CALM) as sandbox:
        for number in range(20):
            sandbox.run_code(HOSTILE["deep instance"], make_project())
            kill_workers(others)
            assert sandbox.run_code(f"print({number})", make_project()).printed == f"{number}\n"


PIECES = [
    "typecheck('.')",
    "r = ruff_check('src')\n",
    "for e in r.violations:",
    "\n    ",
    "print(",
    "lambda e: ",
]
SIGNS = "()[]{}'=*:.,\\#\0\ud800\n"


@settings(max_examples=150)
@given(code=st.lists(st.sampled_from([*PIECES, *SIGNS]) | st.text(max_size=5), max_size=12).map("".join))
def test_no_text_is_too_odd(code: str, sandbox: Sandbox) -> None:
    run = sandbox.run_code(code, make_project())
    assert (run.error is None) == (run.outcome == "ran")
