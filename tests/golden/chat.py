"""Makes chat.json, the golden file of tests/chat.rs: templates rendered by Jinja2 as transformers does.

    python -m venv v && v/bin/pip install gguf==0.19.0 jinja2==3.1.6
    v/bin/python chat.py MODEL.gguf
"""
import json, sys
from pathlib import Path

import gguf
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).parent

# Written here, in the style of each family.
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'user' or message.role == 'assistant' %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles follow the system message") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN2 = """{%- if tools %}
    {{- 'tools: ' + (tools | tojson) }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(last_query=-1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.last_query < 0 and message.role == "user" and not (message.content.startswith('<r>') and message.content.endswith('</r>')) %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" and '</think>' in message.content %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif (message.role == "user") or (message.role == "system" and not loop.first) or message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + ('#' ~ loop.index if loop.index0 == ns.last_query else '') + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}
"""
BLOCKS = """{# lines with blocks vanish #}
{% for message in messages %}
    {% if message.content is string and message.content | length > 0 %}
[{{ loop.index }}/{{ messages | length }}] {{ message['role'] | upper }}: {{ message.content }}{% if not loop.last %}{{ eos_token }}{% endif %}

    {% else %}
  (empty {{ message.role }}) {{ message.missing }}{{ message['missing'] is defined }}
    {% endif %}
{% endfor %}
  {%+ if add_generation_prompt %}> {% endif %}
"""
PYTHON = """{% macro show(m, n=1) %}{{ m.role.title() }}*{{ n }}={{ m.content.strip().replace('a', 'b') }};{% endmacro %}
{% for m in messages %}{% if m.content == 'skip' %}{% continue %}{% endif %}{{ show(m, n=loop.index) }}{% if m.content == 'stop' %}{% break %}{% endif %}{% endfor %}
{{ messages | tojson }}
{{ messages[0] | tojson(indent=2) }}
{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages[-1]['content'][:3] }} {{ {'b': 1.5, 'a': [true, none, "<é'&>"]} | tojson }}
{% for k, v in messages[0].items() %}{{ k }}:{{ v }} {% endfor %}{{ messages[0].get('none', 'default') }} {{ 7 // 2 }} {{ 7 % 3 }} {{ 'x' * 3 }} {{ "a" ~ 1 }} {{ 'b' in 'abc' }} {{ messages[0] is mapping }} {{ ['a', "it's", 1, 1.5, true, none, {'k': [messages[-1]]}, 'q"q\n'] }} {{ [] }} {{ {} }}
"""
CONVERSATIONS = [
    [("user", "Hi")],
    [("system", "Be brief."), ("user", "What is 2+2?")],
    [("user", "Hello"), ("assistant", "Hi there!"), ("user", "Bye\n\n")],
    [("system", "  spaces  "), ("user", "  a  "), ("assistant", "\n\nb\n"), ("user", "c")],
    [("user", "é 中 😀 <|im_end|> {{ x }} {% raw %} \"q\" 'q' \\ & < >")],
    [("user", ""), ("assistant", "")],
    [("system", "s"), ("system", "t"), ("user", "u"), ("assistant", "<think>no</think>\n\nyes"), ("user", "<r>tool</r>")],
    [("assistant", "first"), ("user", "second"), ("tool", "third")],
    [("user", "skip"), ("assistant", "stop"), ("user", "never")],
    [("user", f"turn {i}") if i % 2 == 0 else ("assistant", f"answer {i}") for i in range(21)],
]


def environment():
    """The environment of transformers' apply_chat_template."""
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    class Rejected(Exception):
        pass

    def raise_exception(message):
        raise Rejected(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env, Rejected


def main(model):
    own = gguf.GGUFReader(model).fields["tokenizer.chat_template"].contents()
    templates = {"smollm2": own, "llama-3": LLAMA3, "qwen2": QWEN2, "gemma": GEMMA, "blocks": BLOCKS, "python": PYTHON}
    cases = []
    for name, source in templates.items():
        env, rejected = environment()
        template = env.from_string(source)
        for number, conversation in enumerate(CONVERSATIONS):
            messages = [{"role": role, "content": content} for role, content in conversation]
            for add in [False, True]:
                case = {"template": name, "conversation": number, "add_generation_prompt": add}
                try:
                    case["text"] = template.render(messages=messages, tools=None, documents=None, bos_token="<s>",
                                                   eos_token="</s>", add_generation_prompt=add)
                except rejected as e:
                    case["error"] = str(e)
                cases.append(case)
    conversations = [[{"role": r, "content": c} for r, c in conversation] for conversation in CONVERSATIONS]
    out = {"templates": templates, "conversations": conversations, "cases": cases}
    (HERE / "chat.json").write_text(json.dumps(out, indent=0) + "\n")


main(*sys.argv[1:])
