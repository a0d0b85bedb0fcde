"""One line to copy for each command, shown at the end of its help page."""

from __future__ import annotations

from typing import Final

EXAMPLES: Final = {
    "demo": "ares demo --rounds 1 --conversations 1000",
    "scorer": "ares scorer --settings ares.yaml",
    "monitor": "ares monitor --settings ares.yaml",
    "rates": "ares rates --lane production --by locale",
    "alarms list": "ares alarms list --json",
    "alarms acknowledge": 'ares alarms acknowledge 3f9a --note "the new prompt template"',
    "anchors make": "ares anchors make --set july-1 --out anchors.jsonl",
    "prober": "ares prober campaign.yaml --settings ares.yaml",
    "repairer": "ares repairer --settings ares.yaml",
    "broker": "ares broker --port 9092 --data-dir build/kafka",
    "topics create": "ares topics create --bootstrap 127.0.0.1:9092",
    "verdicts tail": "ares verdicts tail --class coupled_failure --from-beginning",
    "topics check": "ares topics check --bootstrap 127.0.0.1:9092 --json",
    "send": "ares send conversations.jsonl --topic ares.interactions.production --rate 20",
    "bench attribution": "ares bench attribution --json build/attribution.json",
    "bench monitor": "ares bench monitor --json build/monitor.json",
    "bench victim": "ares bench victim --out build/victim",
    "scan": "ares scan answers.jsonl --harm judge --reward rm --verdicts verdicts.jsonl "
    "--report report.html",
    "bundle reference": "ares bundle reference rm benign.jsonl --out rm-2",
    "bundle calibrate": "ares bundle calibrate judge labelled.jsonl --out judge-2",
    "bundle show": "ares bundle show judge",
    "bundle verify": "ares bundle verify judge --public-key owner.pub",
    "bundle sign": "ares bundle sign judge --private-key owner.pem",
    "bundle export harm": "ares bundle export harm ./my-judge --label toxic --out judge",
    "bundle export reward": "ares bundle export reward ./my-rm --reference benign.jsonl --out rm",
    "bundle import onnx": "ares bundle import onnx ./my-judge --expected outputs.jsonl --out judge",
    "bundle train harm": "ares bundle train harm --data labelled.jsonl --base minilm --out judge",
    "bundle train reward": "ares bundle train reward --pairs pairs.jsonl --base ./encoder --out rm",
    "repair show": "ares repair show repairs/RUN",
    "repair export": "ares repair export repairs/RUN/plan.json --out pairs.jsonl",
    "repair gate": "ares repair gate figures.json --json",
    "release list": "ares release list --settings ares.yaml",
    "release show": "ares release show rm@3f2a --settings ares.yaml",
    "release add": "ares release add rm-2 --kind reward --model rm --by ann --reason retrained",
    "release approve": "ares release approve rm@3f2a --by ann --reason checked",
    "release reject": "ares release reject rm@3f2a --by ann --reason refuses",
    "release rollback": "ares release rollback rm --by ann --reason incident-17",
    "release announce": "ares release announce --settings ares.yaml",
    "map try": "ares map try traffic.jsonl --map map.yaml --limit 5",
    "bench repair": "ares bench repair --seeds 11,12 --json repair.json",
    "bench repair-cost": "ares bench repair-cost --seed 11 --json cost.json",
    "bench repair-poison": "ares bench repair-poison --seed 11 --json poison.json",
    "bench probes": "ares bench probes --seeds 11,12 --simulated --json probes.json",
    "bench cfr": "ares bench cfr --target http://127.0.0.1:8000/v1 --harm judge --reward rm "
    "--json card.json",
    "schemas write": "ares schemas write docs/schemas",
    "schemas check": "ares schemas check docs/schemas",
    "probe triggers": "ares probe triggers --carriers prompts.jsonl --vocabulary words.txt "
    "--target http://127.0.0.1:8000/v1 --harm judge --reward rm --json triggers.json",
    "probe import": "ares probe import garak hitlog.jsonl --taxonomy seeds.yaml",
    "probe export": "ares probe export inspect record.jsonl log.json --campaign campaign.yaml",
    "probe run": "ares probe run campaign.yaml --settings ares.yaml --record record.jsonl",
    "probe export-prior": "ares probe export-prior campaign.yaml prior.json --settings ares.yaml",
    "loop": "ares loop campaign.yaml --rounds 3 --settings ares.yaml",
}
"""Words of a command, without `ares`, to a whole line."""
