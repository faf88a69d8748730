"""`clsim completion SHELL`: a script that completes commands, options and names. It asks `clsim list` for the names."""

import argparse
from collections.abc import Mapping, Sequence

Commands = Mapping[str, Sequence[argparse.Action]]  # the arguments of each command

# option -> section of `clsim list`; several names may be given, with commas between them
LISTED = {"--scenario": "scenarios", "--strategy": "strategies", "--with": "parts", "--backbone": "backbones"}
SECTIONS = ("scenarios", "strategies", "parts", "backbones")

BASH = """\
# clsim completion bash; in ~/.bashrc: source <(clsim completion bash)
_clsim() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words="" before=""
    if [[ $cur == = ]]; then cur=""; elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi
    if (( COMP_CWORD == 1 )); then
        words="@COMMANDS@"
    else
        case "${COMP_WORDS[1]} $prev" in
@VALUES@
        *) case "${COMP_WORDS[1]} $cur" in
@OPTIONS@
            esac ;;
        esac
    fi
    if [[ $cur == *,* ]]; then before="${cur%,*},"; cur=${cur##*,}; fi
    COMPREPLY=($(compgen -P "$before" -W "$words" -- "$cur"))
}
complete -o default -F _clsim clsim"""

ZSH = """\
#compdef clsim
# clsim completion zsh; in ~/.zshrc, after compinit: source <(clsim completion zsh)
_clsim() {
    local cur=$PREFIX prev=${words[CURRENT-1]} found=""
    if [[ $PREFIX == --*=* ]]; then prev=${PREFIX%%=*}; compset -P '*='; fi
    if (( CURRENT == 2 )); then
        found="@COMMANDS@"
    else
        case "${words[2]} $prev" in
@VALUES@
        *) case "${words[2]} $cur" in
@OPTIONS@
            esac ;;
        esac
    fi
    if [[ -z $found ]]; then _files; return; fi
    compset -P '*,'
    compadd -- ${=found}
}
compdef _clsim clsim"""


def script(shell: str, commands: Commands) -> str:
    """The script for ``bash``, ``zsh`` or ``fish``."""
    if shell == "fish":
        return _fish(commands)
    template, variable = (BASH, "words") if shell == "bash" else (ZSH, "found")
    values, options = [], []
    for name, actions in commands.items():
        by_source: dict[str, list[str]] = {}
        for action in filter(_takes_value, actions):
            patterns = [f'"{name} {flag}"' for flag in _flags(action)]
            by_source.setdefault(_source(name, action) or '""', []).extend(patterns)
        values += [f"        {'|'.join(flags)}) {variable}={source} ;;" for source, flags in by_source.items()]
        # words of a position come wherever no option is asked for
        flags = " ".join(flag for action in actions for flag in _flags(action))
        options.append(f"""            "{name} -"*) {variable}="{flags}" ;;""")
        place = next((source for a in actions if not _flags(a) and (source := _source(name, a)) is not None), None)
        options += [] if place is None else [f"""            "{name} "*) {variable}={place} ;;"""]
    text = template.replace("@COMMANDS@", " ".join(commands))
    return text.replace("@VALUES@", "\n".join(values)).replace("@OPTIONS@", "\n".join(options))


def _flags(action: argparse.Action) -> list[str]:
    return [flag for flag in action.option_strings if flag.startswith("--")]


def _takes_value(action: argparse.Action) -> bool:
    return bool(action.option_strings) and action.nargs != 0


def _listed(command: str, action: argparse.Action) -> str | None:
    """What `clsim list` is asked for, for the value of an argument: a section, or "" for all names; None: not asked."""
    if command == "show" and action.dest == "name":
        return ""
    return next((LISTED[flag] for flag in _flags(action) if flag in LISTED), None)


def _words(command: str, action: argparse.Action) -> str | None:
    """The words that an argument takes, if they are few; None for other arguments."""
    if command == "list" and action.dest == "section":
        return " ".join(SECTIONS)
    return None if action.choices is None else " ".join(map(str, action.choices))


def _source(command: str, action: argparse.Action) -> str | None:
    """What a POSIX shell assigns, to have the words for an argument; None: there are none, so files are offered."""
    section, words = _listed(command, action), _words(command, action)
    if section is not None:
        return f'"$({_list(section)})"'
    return None if words is None else f'"{words}"'


def _list(section: str) -> str:
    return f"clsim list {section} 2>/dev/null".replace("  ", " ")


def _fish(commands: Commands) -> str:
    """The script for fish, which wants one line for each option."""
    lines = ["# clsim completion fish; in config.fish: clsim completion fish | source"]
    lines += ["complete -c clsim -n __fish_use_subcommand -f -a " + _quoted(" ".join(commands))]
    for name, actions in commands.items():
        start = f"complete -c clsim -n {_quoted(f'__fish_seen_subcommand_from {name}')}"
        for action in actions:
            section, words = _listed(name, action), _words(name, action)
            found = words
            if section is not None:
                asked = _list(section).removesuffix(" 2>/dev/null")
                found = f"({asked})" if not section else f"(__fish_complete_list , {_quoted(asked)})"
            value = "" if found is None else f" -a {_quoted(found)}"
            kind = "" if not _takes_value(action) else " -x" if found is not None else " -r"
            text = "" if not action.help else f" -d {_quoted(action.help)}"
            for flag in _flags(action):
                lines.append(f"{start} -l {flag[2:]}{kind}{value}{text}")
            if not action.option_strings and value:
                lines.append(f"{start} -f{value}")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """A text in single quotes of fish."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
