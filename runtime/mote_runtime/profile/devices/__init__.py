"""A phone or board that adb reaches (docs/device.md).

`adb` speaks to it, `facts` asks what it is, `folder` keeps what is put there, `runner` finds the program for it; `measure` runs
that, and `trace` and `profile` make of its files what `build` takes.
"""
