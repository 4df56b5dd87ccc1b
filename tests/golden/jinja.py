"""Makes jinja.json, the golden file of tests/chat.rs for what Jinja2 and Python's own methods do in a template.

    python -m venv v && v/bin/pip install transformers jinja2==3.1.6
    v/bin/python jinja.py
"""
import json
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

CASES = r'''
{{ 'ab'.ljust(4) }}|{{ 'ab'.rjust(4, '*') }}|{{ 'ab'.center(5, '-') }}|{{ 'abc'.center(6) }}|{{ '-7'.zfill(4) }}
{{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('x') }} {{ 'abc'.rpartition('x') }}
{{ "it's a dog's 2nd day".title() }} {{ 'Ab'.swapcase() }} {{ 'abcab'.removeprefix('ab') }} {{ 'abcab'.removesuffix('ab') }}
{{ 'a,b,c'.rsplit(',', 1) }} {{ ' a  b c '.split() }} {{ 'a b c'.split(None, 1) }} {{ 'a\r\nb\n\nc'.splitlines() }} {{ 'abcabc'.find('c', 3) }} {{ 'abcabc'.rfind('a') }} {{ 'aXbX'.count('X') }} {{ 'abc'.index('b') }}
{{ '%s has %d of %.2f%%' % ('a', 3, 1.5) }} {{ '%s' % 'x' }} {{ '%(k)s' % {'k': 'v'} }} {{ '%05d|%-4s|%x' % (42, 'ab', 255) }} {{ -7 % 3 }} {{ 7.5 % 2 }} {{ 7 % -3 }}
{{ {'b': 1, 'a': [1.5, 1e16, true, none, 'é<\u2028"']} | tojson }} {{ {'b': 1, 'a': 'é😀'} | tojson(ensure_ascii=True, sort_keys=True) }} {{ [1, {'k': []}] | tojson(indent=2) }} {{ [1, {'k': 2}] | tojson(separators=(',', ':')) }} {{ {'k': [1]} | tojson(indent=4, separators=(', ', ' = ')) }} {{ [1] | tojson(True) }} {{ {} | tojson(indent=2) }} {{ [1] | tojson(indent='--') }}
{{ tools is iterable }} {{ tools is sequence }} {{ 'a' is iterable }} {{ {} is sequence }} {{ 1 is iterable }} {{ missing is iterable }} {{ 'ab' | center(6) }}| {{ 'a b  c' | wordcount }}
{{ '<' | safe + '>&"' }} {{ 'a"' + '<' | safe }} {{ '<' | e + '<' | safe }} {{ 'x' | safe ~ '<' }}
{% generation %}a{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}{%- generation -%}  b  {%- endgeneration +%}
 c
{% set ns = namespace(n=0) %}{% for m in messages %}{% generation %}{% set ns.n = ns.n + 1 %}{{ loop.index }}{{ m.role }}{% endgeneration %}{% endfor %}{{ ns.n }}
{{ 'a\x41\u00e9\t\'' }} {{ "a" 'b' }} {{ '\\n' }}
{{ ' a\x1c'.strip() == 'a' }}{{ 'abc'.strip('ac') }}{{ 'aabb'.lstrip('a') }}{{ 'x'.join(['a', 'b']) }}{{ 'abc'[::-1] }}{{ 'a' in 'abc' }}
'''.strip('\n').split('\n')
CASES = ['\n'.join(CASES[8:10])] + CASES[:8] + CASES[10:]
CASES += ["a\r\nb{% if 1 %}\r\nc\r{% endif %}\r\n{{ '\r\n' }}d", "{%- for m in messages -%}\r\n  {{ m.role }}\r\n{%- endfor %}"]
CHAT = [{"role": "user", "content": "hello"}]
rendered = [[source, render_jinja_template([CHAT], chat_template=source, add_generation_prompt=True)[0][0]] for source in CASES]
(Path(__file__).parent / "jinja.json").write_text(json.dumps(rendered, indent=0) + "\n")
