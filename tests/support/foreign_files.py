"""Files in the forms of other tools."""

JAILBREAKBENCH = {
    "parameters": {"model": "m"},
    "jailbreaks": [
        {"index": 0, "goal": "g", "category": "Fraud", "prompt": "Ask", "response": "Told"},
        {"index": 1, "goal": "g", "category": "Fraud", "prompt": None, "response": None},
    ],
}
