//! `epiphyte chat`: a conversation. Ctrl-C stops the answer, or leaves where there is none.

use std::io::IsTerminal;
use std::sync::Arc;

use clap::Args;

use super::adapter::{AdapterArgs, Adapters, Weighted};
use super::lines::Lines;
use super::response::ResponseArgs;
use super::{
    LookupArgs, ModelArgs, Policy, SamplingArgs, TemplateArgs, generate, interrupt, output,
};
use epiphyte::GpuOptions;
use epiphyte::chat::Message;
use epiphyte::engine::AdapterState;
use epiphyte::engine::{FinishReason, GenerateOptions, Session};
use epiphyte::error::{Error, Result};

const HELP: &str = "/reset                 forget the conversation\n\
                    /system TEXT           go on with this system message\n\
                    /system off            go on without one\n\
                    /adapters              list the LoRA adapters, those in use with their \
                    weights\n\
                    /adapter PATH[=WEIGHT] go on with this LoRA adapter alone\n\
                    /adapter off           go on without adapters\n\
                    /quit                  leave; so do Ctrl-D and Ctrl-C\n\
                    /help                  this\n\
                    Ctrl-C while the model answers stops the answer.";
const FULL: &str = "The conversation fills the context. /reset starts a new one; with \
                    --context-policy drop-oldest it would go on.";

/// Talk with the model
#[derive(Args)]
pub(super) struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// The system message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Most tokens of an answer [default: what the context has room for]
    #[arg(short = 'n', long, value_name = "N")]
    max_tokens: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    lookup: LookupArgs,
    #[command(flatten)]
    response: ResponseArgs,
    /// What becomes of a conversation that fills the context
    #[arg(long, value_enum, value_name = "POLICY", default_value = "error")]
    context_policy: Policy,
}

pub(super) fn run(args: &ChatArgs, gpu: GpuOptions) -> Result<()> {
    let options = GenerateOptions {
        sampling: args.sampling.sampling()?,
        max_tokens: args.max_tokens.unwrap_or(usize::MAX),
        response_format: args.response.read()?,
        prompt_lookup_num_tokens: args.lookup.most(),
        ..Default::default()
    };
    let engine = args.model.open_with(gpu, &args.template)?;
    // The main thread waits for a line and can't be woken.
    let shared = Arc::clone(&engine);
    interrupt::before_leaving(move || {
        shared.save_pipelines();
        output::note("");
    });
    let mut lines = Lines::default();
    if std::io::stdin().is_terminal() {
        output::note(&format!("{}\n/help lists the commands.", engine.device()));
    }
    let mut chat = Chat {
        session: engine.session(),
        messages: Vec::new(),
        options,
        force: args.adapters.force,
    };
    chat.session.set_context_policy(args.context_policy.into());
    chat.set_system(args.system.as_deref());
    Adapters::load(&args.adapters, &engine)?.apply(&mut chat.session)?;
    while let Some(line) = lines.next()? {
        match line.trim() {
            "" => {}
            "/quit" => break,
            command if command.starts_with('/') => {
                // The conversation goes on as it was if this can't be done.
                if let Err(error) = chat.command(command) {
                    output::note(&format!("error: {error}"));
                }
            }
            text => chat.answer(text)?,
        }
    }
    Ok(())
}

struct Chat {
    session: Session,
    messages: Vec<Message>,
    options: GenerateOptions,
    /// Adapters made for another base are welcome.
    force: bool,
}

impl Chat {
    fn command(&mut self, command: &str) -> Result<()> {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (name, rest.trim()) {
            ("/help", _) => output::note(HELP),
            ("/reset", _) => self.messages.retain(|message| message.role == "system"),
            ("/system", "") => return Err(missing("/system", "give a text, or `off`")),
            ("/system", text) => self.set_system((text != "off").then_some(text)),
            ("/adapters", _) => self.list_adapters(),
            ("/adapter", adapter) => self.change_adapter(adapter)?,
            _ => output::note("There is no such command; /help lists them."),
        }
        Ok(())
    }

    /// The conversation goes on as if it had always been this.
    fn set_system(&mut self, text: Option<&str>) {
        self.messages.retain(|message| message.role != "system");
        self.messages.splice(0..0, text.map(|text| Message::new("system", text)));
    }

    fn list_adapters(&self) {
        let used = self.session.adapters();
        for AdapterState { id, .. } in self.session.engine().adapters() {
            let weight =
                used.iter().find(|(of, _)| *of == id).map(|(_, weight)| format!(" x {weight}"));
            let (mark, weight) =
                (if weight.is_some() { "*" } else { " " }, weight.unwrap_or_default());
            output::note(&format!("{mark} {id}{weight}"));
        }
        if used.is_empty() {
            output::note("No adapter is in use.");
        }
    }

    /// Changes the adapter of the conversation, which is then read again under the new one.
    fn change_adapter(&mut self, adapter: &str) -> Result<()> {
        let adapters = match adapter {
            "" => return Err(missing("/adapter", "give a path or a name, or `off`")),
            "off" => Adapters::default(),
            path => Adapters(vec![
                Weighted::parse(path.into())?.load(self.session.engine(), self.force)?,
            ]),
        };
        adapters.apply(&mut self.session)
    }

    /// Answers a message. One that can't be answered leaves the conversation as it was.
    fn answer(&mut self, text: &str) -> Result<()> {
        self.messages.push(Message::new("user", text));
        let stop = interrupt::listen("");
        let options = GenerateOptions { cancel: stop.token.clone(), ..self.options.clone() };
        let session = &mut self.session;
        let answer = session
            .set_messages(&self.messages)
            .and_then(|()| generate::answer(session, options, output::text));
        drop(stop);
        match answer {
            Ok(answer) => {
                self.messages.push(Message::new("assistant", answer.text));
                output::text("\n")?;
                if answer.finish_reason == Some(FinishReason::ContextFull) {
                    output::note(FULL);
                }
                Ok(())
            }
            Err(error) => {
                self.messages.pop();
                unanswered(error)
            }
        }
    }
}

fn missing(name: &'static str, reason: &str) -> Error {
    Error::InvalidArgument { name, reason: reason.into() }
}

/// Says why there is no answer. Errors: those that leave no conversation to go on with.
fn unanswered(error: Error) -> Result<()> {
    match error {
        Error::Cancelled => output::text("\n"),
        Error::ContextFull { .. } => {
            output::note(FULL);
            Ok(())
        }
        // The next message may fare better.
        Error::ChatTemplate(_) | Error::Tokenizer(_) => {
            output::note(&format!("error: {error}"));
            Ok(())
        }
        error => Err(error),
    }
}
