"""The one boundary to files: read in bounded memory, told in one line what is wrong, written
whole or not at all.

| what | how | module |
|---|---|---|
| JSON lines, plain, gzip or standard input | `open_lines`, `read_rows`, `parse_json` | rows |
| a document | `read_json`, `read_yaml`, `parse_yaml`, `validated` | documents, yaml_text |
| a secret | `read_secret`, `read_api_key` | secret |
| a file that is renewed | `Renewed`, `renewed_secret`, `renewed_api_key` | renewed |
| what a server answers | `read_answer` | answers |
| a file | `write_whole`, `written_whole`, `write_document` | writing |
| a folder | `written_folder`, `staging_folder` | writing |
| output paths, before the work | `check_outputs` | outputs |
| what pydantic refused | `fault` | validation |

An error names the file, the line where there is one, and the field; it quotes no value. The class
of the error is the caller's (`error`), since a wrong setting and a broken run end differently.
"""

from ares_stream.files.answers import (
    ASKED_ENCODINGS,
    AnswerError,
    AnswerTooLarge,
    read_answer,
)
from ares_stream.files.documents import (
    MAX_DOCUMENT_BYTES,
    read_json,
    read_text,
    read_yaml,
    validated,
)
from ares_stream.files.outputs import check_new_folder, check_outputs
from ares_stream.files.reasons import is_full, is_spent, of_machine, said, unwritable
from ares_stream.files.renewed import (
    Renewed,
    Validity,
    renewed_api_key,
    renewed_secret,
    renewed_values,
)
from ares_stream.files.rows import (
    MAX_LINE_BYTES,
    STDIO,
    Lines,
    Survey,
    open_lines,
    parse_json,
    read_rows,
)
from ares_stream.files.secret import checked_api_key, read_api_key, read_secret
from ares_stream.files.validation import Fault, fault
from ares_stream.files.writing import (
    staging_folder,
    write_document,
    write_whole,
    written_folder,
    written_whole,
)
from ares_stream.files.yaml_text import YamlDocument, parse_yaml

__all__ = [
    "ASKED_ENCODINGS",
    "MAX_DOCUMENT_BYTES",
    "MAX_LINE_BYTES",
    "STDIO",
    "AnswerError",
    "AnswerTooLarge",
    "Fault",
    "Lines",
    "Renewed",
    "Survey",
    "Validity",
    "YamlDocument",
    "check_new_folder",
    "check_outputs",
    "checked_api_key",
    "fault",
    "is_full",
    "is_spent",
    "of_machine",
    "open_lines",
    "parse_json",
    "parse_yaml",
    "read_answer",
    "read_api_key",
    "read_json",
    "read_rows",
    "read_secret",
    "read_text",
    "read_yaml",
    "renewed_api_key",
    "renewed_secret",
    "renewed_values",
    "said",
    "staging_folder",
    "unwritable",
    "validated",
    "write_document",
    "write_whole",
    "written_folder",
    "written_whole",
]  # fmt: skip
