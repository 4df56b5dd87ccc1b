//! Tool calls: which template has which, what is read of an answer, what an answer is held to.

use epiphyte::chat::{ChatTemplate, Message, Prompt, ToolCall, ToolFormat};
use epiphyte::{Error, ResponseFormat};
use serde_json::{Map, Value, json};

/// The part of each family's template that tells a model how to call tools.
const HERMES: &str = "{% if tools %}{{ tools[0].function.name }} in <tool_call></tool_call>:\n\
    <tool_call>\\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\\n</tool_call>\
    {% endif %}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}\
    <tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}";
const LLAMA: &str = "{%- if tools is not none %}{{ 'Respond in the format {\"name\": function name, \
    \"parameters\": dictionary of argument name and its value}.' }}{% endif %}";
const MISTRAL: &str = "{% if tools %}[AVAILABLE_TOOLS]{% endif %}{{ '[TOOL_CALLS] [' }}";

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(Some(source), "", "").unwrap()
}

fn format(source: &str) -> &'static ToolFormat {
    template(source).tool_format().unwrap()
}

fn call(name: &str, arguments: Value) -> ToolCall {
    ToolCall { name: name.into(), arguments: arguments.as_object().unwrap().clone() }
}

fn tools() -> Vec<Value> {
    let unit = json!({ "enum": ["C", "F"] });
    vec![
        json!({ "type": "function", "function": { "name": "get_weather", "parameters": {
            "type": "object",
            "properties": { "city": { "type": "string" }, "unit": { "$ref": "#/$defs/unit" } },
            "required": ["city", "unit"],
            "additionalProperties": false,
            "$defs": { "unit": unit },
        } } }),
        json!({ "name": "now" }),
    ]
}

#[test]
fn a_format_is_known_by_its_template() {
    assert_eq!(format(HERMES).name(), "hermes");
    assert_eq!(format(LLAMA).name(), "llama-3");
    assert_eq!(format(MISTRAL).name(), "mistral");
    let other = |source| template(source).tool_format();
    assert_eq!(other("{{ messages[0].content }}"), None, "it knows no tools");
    assert_eq!(other("{{ tools }}<tool_call>\n<function=name>"), None, "no JSON");
    assert_eq!(ChatTemplate::new(None, "", "").unwrap().tool_format(), None);
}

#[test]
fn calls_are_read_back() {
    let oslo = call("get_weather", json!({ "city": "S\u{e3}o \"P\"", "unit": "C" }));
    let json = serde_json::to_string(&oslo).unwrap();
    let hermes = format(HERMES);
    let answer = hermes.parse(&format!("I look.\n<tool_call>\n{json}\n</tool_call>")).unwrap();
    assert_eq!((answer.content.as_str(), &answer.calls[..]), ("I look.", &[oslo.clone()][..]));
    let two =
        format!("<tool_call>{json}</tool_call>\n<tool_call>\n{{\"name\": \"now\"}}\n</tool_call>");
    let answer = hermes.parse(&two).unwrap();
    assert_eq!(answer.calls, [oslo.clone(), call("now", json!({}))]);
    assert_eq!(answer.content, "");
    assert_eq!(hermes.parse(" No tool. ").unwrap().content, "No tool.");

    // Marks within JSON's strings are no marks.
    let page = call("say", json!({ "text": "a </tool_call> and a <tool_call>" }));
    let marked = format!("<tool_call>{}</tool_call>", serde_json::to_string(&page).unwrap());
    let answer = hermes.parse(&format!("One.\n{marked}\nTwo. {marked}")).unwrap();
    assert_eq!((answer.content.as_str(), answer.calls), ("One.\nTwo.", vec![page.clone(), page]));

    let llama = json.replace("arguments", "parameters");
    for said in ["[1] says so.", "{\"temperature\": 3}", "[]", "{ no JSON }"] {
        let answer = format(LLAMA).parse(said).unwrap();
        assert_eq!((answer.content.as_str(), answer.calls.len()), (said, 0));
    }
    assert!(format(LLAMA).parse(&llama[..20]).unwrap_err().to_string().contains("cut"));
    let answer = format(LLAMA).parse(&format!("{llama}; {llama}")).unwrap();
    assert_eq!(answer.calls, [oslo.clone(), oslo.clone()]);
    assert_eq!(format(LLAMA).parse("It rains.").unwrap().content, "It rains.");
    assert_eq!(format(MISTRAL).parse(&format!("[{json}, {json}]")).unwrap().calls.len(), 2);

    // And into the next turn of the conversation.
    let messages = [Message::new("user", "?"), answer_of(&two).message()];
    let context = Map::from_iter([("tools".to_string(), Value::from(tools()))]);
    let prompt = Prompt { messages: &messages, context: &context, add_generation_prompt: false };
    let shown = template(HERMES).render_prompt(&prompt).unwrap();
    assert!(
        shown.starts_with("get_weather in")
            && shown.contains("\"get_weather\", \"arguments\": {\"city"),
        "{shown}"
    );
}

fn answer_of(text: &str) -> epiphyte::chat::ToolAnswer {
    format(HERMES).parse(text).unwrap()
}

#[test]
fn what_is_no_call_is_refused_without_quoting_it() {
    for (text, says) in [
        ("<tool_call>\n{\"name\": \"secret", "cut"),
        ("<tool_call>\nsecret\n</tool_call>", "no JSON"),
        ("<tool_call>{\"secret\": 1}</tool_call>", "name"),
        ("<tool_call>{\"name\": \"f\", \"arguments\": \"secret\"}</tool_call>", "arguments"),
    ] {
        let error = format(HERMES).parse(text).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { name: "tool_call", .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains(says) && !said.contains("secret"), "{said}");
    }
}

#[test]
fn a_required_call_compiles_and_nonsense_is_refused() {
    for source in [HERMES, LLAMA, MISTRAL] {
        format(source).required(&tools()).unwrap().check().unwrap();
    }
    let refused = |tools: &[Value]| format(HERMES).required(tools).unwrap_err().to_string();
    assert!(refused(&[]).contains("at least one"));
    assert!(refused(&[json!({ "description": "x" })]).contains("name"));
    assert!(
        refused(&[json!({ "name": "f", "parameters": { "type": "array" } })]).contains("object")
    );
    assert!(refused(&[json!({ "name": "f", "parameters": true })]).contains("object"));
    let any = json!([{ "name": "f", "parameters": {} }, { "name": "g", "parameters": null }]);
    let ResponseFormat::Lark(lark) = format(HERMES).required(any.as_array().unwrap()).unwrap()
    else {
        panic!("no grammar");
    };
    assert_eq!(lark.matches("\"type\":\"object\"").count(), 2, "{lark}");
    let wrong = json!({ "name": "f", "parameters": { "type": "wish" } });
    let format = format(HERMES).required(&[wrong]).unwrap();
    assert!(matches!(format, ResponseFormat::Lark(_)));
    assert!(format.check().unwrap_err().to_string().contains("wish"));
}
