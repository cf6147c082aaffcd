"""What pyproject.toml cannot say: a wheel has the studies of projects/ and what they found, for `demo` and `advise`."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithProjects(build_py):
    """Copies the files of each study into the package; an editable installation reads them where they lie."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        written = [file for file in Path("projects").glob("*/*") if file.suffix in (".toml", ".md")]
        for file in sorted([*written, *Path("projects").glob("*/results*/tables/main.csv")]):
            copy = Path(self.build_lib, "ehrtrack", file)
            self.mkpath(str(copy.parent))
            self.copy_file(str(file), str(copy))


setup(cmdclass={"build_py": WithProjects})
