// A chat template renders as transformers renders it, and one that cannot is named when it is loaded.

import t from 'tap';
import { InvalidRequestError } from '#millrace/errors.js';
import type { ChatMessage } from '#millrace/messages/token-request.js';
import { ChatTemplate } from '#millrace/preprocess/model-folder/jinja-template.js';
import { parseLenientJson } from '#millrace/preprocess/model-folder/lenient-json.js';
import { strftime } from '#millrace/preprocess/model-folder/strftime.js';
import { CHATML_TEMPLATE } from './model-folder-files.js';

/** 20 November 2023, 15:04:05, local time. */
const clock = { wallMs: () => new Date(2023, 10, 20, 15, 4, 5).getTime() };
const variables = { bos_token: '<s>', eos_token: '</s>' };

const template = (source: string, toolUse: string | null = null): ChatTemplate =>
  new ChatTemplate({ sources: { default: source, toolUse }, variables, clock });

const say = (role: string, text: string, textParts?: readonly string[]): ChatMessage => ({
  role,
  text,
  hasMedia: false,
  ...(textParts === undefined ? {} : { textParts }),
});
const TALK = [say('user', ' 1+1? '), say('assistant', '2'), say('user', 'sure?')];

const LLAMA3 = `{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + strftime_now("%d %b %Y") + "\\n" + ns.system + "<|eot_id|>" }}
{%- for message in messages %}
{{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' ~ (message['content'] | trim) ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}`;

const MISTRAL = `{{ bos_token }}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message.role == 'user' %}{{ '[INST] ' + message.content + '[/INST]' }}
    {%- else %}{{ ' ' + message.content + eos_token }}{% endif %}
{%- endfor %}`;

const GEMMA = `{{ bos_token }}
{%- macro turn(role, text) %}<start_of_turn>{{ role }}
{{ text | trim }}<end_of_turn>
{% endmacro %}
{%- for message in messages %}
    {%- if message.content is string %}{% set text = message.content %}
    {%- else %}
        {%- set ns = namespace(text='') %}
        {%- for part in message.content if part.type == 'text' %}{% set ns.text = ns.text + part.text %}{% endfor %}
        {%- set text = ns.text %}
    {%- endif %}
    {{- turn('model' if message.role == 'assistant' else message.role, text) }}
{%- endfor %}
{% if add_generation_prompt %}
<start_of_turn>model
{% endif %}`;

const TOOLS = `{%- if tools %}[TOOLS]{% for tool in tools %}{{ tool.function | tojson }}{{ '' if loop.last else ',' }}{% endfor %}[/TOOLS]
{%- endif %}
{%- for message in messages %}{{ message.role | upper }}: {{ message.content }}
{% endfor %}`;
const TOOL = { type: 'function', function: { name: 'f', description: 'a <b> & "c"', parameters: {} } };

t.test('five well-known shapes', async t => {
  const cases: [name: string, rendered: string, expected: string][] = [
    [
      'ChatML',
      template(CHATML_TEMPLATE).render(TALK),
      '<|im_start|>user\n 1+1? <|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n' +
        '<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n',
    ],
    [
      'Llama 3',
      template(LLAMA3).render([say('system', 'Be kind. '), ...TALK]),
      '<s><|start_header_id|>system<|end_header_id|>\n\nToday: 20 Nov 2023\nBe kind.<|eot_id|>' +
        '<|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|>' +
        '<|start_header_id|>assistant<|end_header_id|>\n\n2<|eot_id|>' +
        '<|start_header_id|>user<|end_header_id|>\n\nsure?<|eot_id|>' +
        '<|start_header_id|>assistant<|end_header_id|>\n\n',
    ],
    ['Mistral', template(MISTRAL).render(TALK), '<s>[INST]  1+1? [/INST] 2</s>[INST] sure?[/INST]'],
    [
      'Gemma',
      template(GEMMA).render(TALK),
      '<s><start_of_turn>user\n1+1?<end_of_turn>\n<start_of_turn>model\n2<end_of_turn>\n' +
        '<start_of_turn>user\nsure?<end_of_turn>\n<start_of_turn>model\n',
    ],
    [
      'tools',
      template(TOOLS).render([say('user', 'go')], { tools: [TOOL] }),
      '[TOOLS]{"name": "f", "description": "a <b> & \\"c\\"", "parameters": {}}[/TOOLS]USER: go\n',
    ],
  ];
  for (const [name, rendered, expected] of cases) t.equal(rendered, expected, name);
  t.equal(template(TOOLS).render([say('user', 'go')]), 'USER: go\n', 'no tools, no word of them');
  t.match(template(GEMMA).render([say('user', 'x')], { addGenerationPrompt: false }), /<end_of_turn>\n$/);
});

t.test('named templates: the one for tools is used when there are tools', async t => {
  const both = template(CHATML_TEMPLATE, TOOLS);
  t.match(both.render([say('user', 'x')]), /^<\|im_start\|>/);
  t.match(both.render([say('user', 'x')], { tools: [TOOL] }), /^\[TOOLS\]/);
  t.match(both.render([say('user', 'x')], { tools: [] }), /^<\|im_start\|>/);
});

t.test('contents are given as the template takes them', async t => {
  t.equal(template(CHATML_TEMPLATE).takesParts, false);
  t.equal(template(GEMMA).takesParts, true);
  const two = say('user', 'a\nb', ['a', 'b']);
  t.match(template(CHATML_TEMPLATE).render([two]), 'user\na\nb<|im_end|>', 'one text');
  t.match(template(GEMMA).render([two]), 'user\nab<end_of_turn>', 'parts, one by one');
});

t.test('the token that ends a turn', async t => {
  const tokens = ['<|im_end|>', '<|eot_id|>', '<|eot', '</s>', '<end_of_turn>', '<|im_start|>'];
  t.equal(template(CHATML_TEMPLATE).endOfTurn(tokens), '<|im_end|>');
  t.equal(template(LLAMA3).endOfTurn(tokens), '<|eot_id|>', 'the longest that fits');
  t.equal(template(MISTRAL).endOfTurn(tokens), '</s>');
  t.equal(template(GEMMA).endOfTurn(tokens), '<end_of_turn>');
  t.equal(template(TOOLS).endOfTurn(tokens), null);
});

t.test('a template that refuses messages: the client learns why', async t => {
  const wrong = [say('user', 'a'), say('user', 'b')];
  t.throws(() => template(MISTRAL).render(wrong), InvalidRequestError);
  t.throws(() => template(MISTRAL).render(wrong), {
    param: 'messages',
    message: "the model's chat template refuses these messages: roles must alternate user/assistant",
  });
  const bounded = template(
    '{% for m in messages %}{{ m.content }}{% if m.role == "x" %}{{ range(9999999) }}{% endif %}{% endfor %}',
  );
  t.throws(() => bounded.render([say('x', 'a')]), {
    message: /cannot render these messages: range\(\) makes at most/,
  });
});

t.test('a template that cannot be used is an error when it is loaded', async t => {
  const loop = (body: string) => `{% for m in messages %}${body}{% endfor %}`;
  const cases: [source: string, reason: RegExp][] = [
    [loop('{{ m.content | shout }}'), /the unknown filter "shout"/],
    [loop('{% if m.x %}{{ m.content | shout(2) | trim }}{% endif %}{{ m.content }}'), /"shout"/],
    [loop('{% if m.content is loud %}{% endif %}{{ m.content }}'), /the unknown test "loud"/],
    [loop('{{ m.content }'), /./],
    ['{% for m in messages %}{{ m.content }}', /./],
    [loop('{{ m.role }}'), /cannot render one user message: the content is left out/],
    ['{{ raise_exception("never") }}', /cannot render one user message: never/],
    [loop('{{ strftime_now("%Q") }}{{ m.content }}'), /strftime_now does not know "%Q"/],
  ];
  for (const [source, reason] of cases) t.throws(() => template(source), { message: reason }, source);
  t.throws(
    () => template(CHATML_TEMPLATE, '{{ tools | shout }}'),
    { message: /"shout"/ },
    'the one for tools too',
  );
  const known =
    'trim length tojson join first last list string upper lower title capitalize default unique sort items';
  for (const name of known.split(' ')) {
    const source = `{% if messages | length > 5 %}{{ messages | ${name} }}{% endif %}${loop('{{ m.content }}')}`;
    t.doesNotThrow(() => template(source), name);
  }
});

t.test('dates as Python writes them', async t => {
  const at = new Date(2024, 1, 3, 0, 5, 9).getTime();
  t.equal(
    strftime('%Y-%m-%d %H:%M:%S %I%p %j %A %B %-d/%-m/%y %a %b %e%%', at),
    '2024-02-03 00:05:09 12AM 034 Saturday February 3/2/24 Sat Feb  3%',
  );
  t.equal(strftime('%F %T %-I', new Date(2024, 11, 31, 13, 0, 0).getTime()), '2024-12-31 13:00:00 1');
  t.throws(() => strftime('%', at), { message: /"%"/ });
});

t.test('JSON as Python writes it', async t => {
  t.same(parseLenientJson('{"a": NaN, "b": [-Infinity, Infinity, 1], "NaN": "Infinity \\" NaN"}'), {
    a: null,
    b: [null, null, 1],
    NaN: 'Infinity " NaN',
  });
  t.throws(() => parseLenientJson('{"a": NaN'), SyntaxError);
  t.throws(() => parseLenientJson('{a: 1}'), SyntaxError);
});
