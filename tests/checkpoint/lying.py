"""A checkpoint that lies: a real one, wrapped, that gives wrong answers where it is told to.

    from checkpoint.lying import LyingCheckpoint


LyingCheckpoint(real)                                  tells the truth
LyingCheckpoint(real, flip_bit={name: bit})            one bit of the tensor's bytes is flipped, whatever part is read
LyingCheckpoint(real, short={name})                    the read ends early, with the error of a file cut short
LyingCheckpoint(real, changed={name})                  the read finds a file that changed since the plan was made
LyingCheckpoint(real, specs={name: Spec(...)})         `locate` claims another dtype or shape for the same bytes
LyingCheckpoint(real, hidden={name})                   `names` and `locate` do not know the tensor
LyingCheckpoint(real, content={name: bytes})           other bytes of the same length
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mtpforge.errors import MtpforgeError


@dataclass
class LyingCheckpoint:
    real: object
    flip_bit: dict = field(default_factory=dict)
    short: frozenset = frozenset()
    changed: frozenset = frozenset()
    specs: dict = field(default_factory=dict)
    hidden: frozenset = frozenset()
    content: dict = field(default_factory=dict)
    _begin: dict = field(default_factory=dict)

    def __getattr__(self, name):  # everything else is the truth
        return getattr(self.real, name)

    @property
    def names(self):
        return self.real.names - self.hidden

    def locate(self, names):
        names = list(names)
        if gone := [name for name in names if name in self.hidden]:
            raise MtpforgeError(f"no tensor `{gone[0]}`", where=self.real.label, why="it is hidden")
        refs = self.real.locate(names)
        for name, ref in refs.items():
            self._begin[name] = ref.start
            if name in self.specs:
                refs[name] = replace(ref, spec=self.specs[name])
        return refs

    def read(self, ref, into):
        if ref.name in self.changed:
            raise MtpforgeError(f"`{ref.file}` changed while it was being used", where=ref.file, why="it was written")
        if ref.name in self.short:
            raise MtpforgeError(f"`{ref.file}` is cut short", where=f"{ref.file}, tensor {ref.name}", why="it ends")
        self.real.read(ref, into)
        view = into.cast("B")
        first = ref.start - self._begin.get(ref.name, ref.start)  # of the part that is read, within the tensor
        if ref.name in self.content:
            view[:] = self.content[ref.name][first : first + view.nbytes]
        byte, bit = divmod(self.flip_bit.get(ref.name, -1), 8)
        if 0 <= byte - first < view.nbytes:
            view[byte - first] ^= 1 << bit
