"""The names that no checkpoint has a use for: calls that start programs, run text as code, load code, or
reach files and the network.

Nothing here would run them. But the next person to open such a file with torch.load or pickle would.
``builtins.getattr`` is not among them: Python writes it for a class inside a class, for the member of an
enumeration and for a method.
"""

_MODULES = """
os posix nt sys subprocess _posixsubprocess shutil socket _socket ssl importlib _frozen_importlib
_frozen_importlib_external runpy pickle _pickle joblib ctypes _ctypes webbrowser pty pdb bdb pip pydoc
marshal zipimport requests aiohttp httpx ftplib smtplib telnetlib poplib imaplib xmlrpc socketserver
ensurepip venv distutils setuptools popen2 pexpect paramiko
"""
_FUNCTIONS = """
builtins.eval builtins.exec builtins.execfile builtins.compile builtins.open builtins.setattr
builtins.delattr builtins.__import__ builtins.breakpoint builtins.input builtins.globals builtins.locals
builtins.vars io.open io.open_code io.FileIO _io.open _io.open_code _io.FileIO codecs.open code.interact
code.InteractiveConsole code.InteractiveInterpreter codeop.compile_command timeit.timeit timeit.main
trace.Trace profile.run profile.Profile cProfile.run cProfile.Profile platform.popen
platform._syscmd_ver imp.load_source imp.load_dynamic atexit.register _thread.start_new_thread
threading.Thread threading.Timer signal.signal multiprocessing.Process asyncio.run
asyncio.create_subprocess_shell asyncio.create_subprocess_exec urllib.request http.client http.server
tempfile.mktemp operator.attrgetter operator.methodcaller dill.load dill.loads dill._dill.load
dill._dill.loads cloudpickle.load cloudpickle.loads numpy.load numpy.fromfile numpy.f2py
numpy.testing._private.utils.runstring pandas.eval pandas.read_pickle torch.load torch.hub
torch.jit.load torch.package torch.serialization.load torch.storage._load_from_bytes
torch.utils.cpp_extension torch.utils.collect_env torch._inductor.codecache
"""
_HOSTILE_MODULES = frozenset(_MODULES.split())
_HOSTILE_FUNCTIONS = frozenset(_FUNCTIONS.split())


def is_hostile(module: str, name: str) -> bool:
    """Whether a class or function by its module and its name, which may have dots, is one of these. A module
    reached through another one counts, too: ``torch.serialization`` and ``os.system``."""
    full = f"{module}.{name}"
    beginnings = {full[:k] for k in range(len(full)) if full[k] == "."} | {full}
    return (
        module.partition(".")[0] in _HOSTILE_MODULES
        or name.partition(".")[0] in _HOSTILE_MODULES
        or not _HOSTILE_FUNCTIONS.isdisjoint(beginnings)
    )
