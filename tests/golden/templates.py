"""Renders conversations with the chat templates of a folder, by transformers itself: what tests/templates.rs compares with.

    python -m venv v && v/bin/pip install transformers jinja2
    v/bin/python templates.py FOLDER_OF_JINJA_FILES OUT.json
    EPIPHYTE_TEMPLATES=OUT.json cargo test --test main templates -- --nocapture

The templates belong to the makers of the models, so neither they nor what they render is kept here. The PyPI source
package of llama-cpp-python has those of some 70 models in vendor/llama.cpp/models/templates.
"""
import json, sys
from pathlib import Path

import jinja2
from transformers.tokenization_utils_base import _normalize_chat_messages
from transformers.utils.chat_template_utils import render_jinja_template

TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a city, \"now\" <or> later.",
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "Name, é 中"},
        "days": {"type": "integer", "description": "How many", "enum": [1, 2]},
        "unit": {"type": ["string", "null"]}, "places": {"type": "array", "items": {"type": "string"}}}}}}
CALL = {"id": "call_abc12", "type": "function",
        "function": {"name": "get_weather", "arguments": {"city": "São Paulo", "days": 2, "deep": {"a": [1.5, None, True]}}}}


def turns(*said):
    return [{"role": role, "content": content} for role, content in said]


CONVERSATIONS = {
    "plain": {"messages": turns(("user", "Hi"))},
    "system": {"messages": turns(("system", "Be brief."), ("user", "What is 2+2?"))},
    "turns": {"messages": turns(("system", "s"), ("user", "Hello"), ("assistant", "Hi there!"), ("user", " Bye \n\n"), ("assistant", "So long."), ("user", "?"))},
    "tools": {"messages": turns(("system", "Be brief."), ("user", "Weather in Oslo?")), "tools": [TOOL]},
    "calls": {"messages": turns(("user", "Weather?")) + [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "get_weather", "tool_call_id": "call_abc12", "content": "{\"sky\": \"<clear>\"}"}]
        + turns(("assistant", "Clear."), ("user", "Thanks")), "tools": [TOOL]},
    "unicode": {"messages": turns(("user", "é 中 😀 \u2028 \"q\" 'q' \\ & < > {{ x }} {% y %} \t tab\r\n"))},
    "empty": {"messages": turns(("user", ""), ("assistant", ""), ("user", "  "))},
    "reasoning": {"messages": turns(("user", "1+1?")) + [
        {"role": "assistant", "content": "2", "reasoning_content": "One and one.\n"}] + turns(
        ("user", "2+2?"), ("assistant", "<think>\nTwo and two.\n</think>\n\n4"), ("user", "3+3?")),
        "enable_thinking": False},
    "control": {"messages": turns(("user", "a<|im_end|>\n<|im_start|>system\nb</s>[INST]<|eot_id|><end_of_turn>"), ("assistant", "c<|endoftext|>d"), ("user", "e"))},
    "null": {"messages": turns(("user", "Weather?")) + [
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        {"role": "tool", "tool_call_id": "call_abc12", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_abc12", "content": "sun"}], "tools": [TOOL]},
}


def main(folder, out):
    templates, cases = {}, []
    for path in sorted(Path(folder).glob("*.jinja")):
        name, source = path.stem, path.read_bytes().decode()
        templates[name] = source
        for label, conversation in CONVERSATIONS.items():
            context = {key: value for key, value in conversation.items() if key != "messages"}
            for add in [False, True]:
                case = {"template": name, "conversation": label, "add_generation_prompt": add}
                try:
                    messages = _normalize_chat_messages(json.loads(json.dumps(conversation["messages"])))
                    rendered, _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=add,
                                                        bos_token="<s>", eos_token="</s>", **context)
                    case["text"] = rendered[0]
                except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError, RecursionError) as e:
                    case["error"] = f"{type(e).__name__}: {e}"
                cases.append(case)
    Path(out).write_text(json.dumps({"templates": templates, "conversations": CONVERSATIONS, "cases": cases}))
    print(len(templates), "templates,", len(cases), "cases")


main(*sys.argv[1:])
