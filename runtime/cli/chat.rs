//! `epiphyte chat`: a conversation. Ctrl-C stops the answer, or leaves where there is none.

use std::io::{BufRead, IsTerminal};
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;

use super::adapter::{AdapterArgs, Adapters, Weighted};
use super::{ModelArgs, SamplingArgs, TemplateArgs, generate, output};
use crate::chat::Message;
use crate::engine::{CancelToken, Engine, FinishReason, GenerateOptions, Session};
use crate::error::{Error, Result};
use crate::gpu::GpuOptions;

const HELP: &str = "/reset                 forget the conversation\n\
                    /adapter PATH[=WEIGHT] go on with this LoRA adapter alone\n\
                    /adapter off           go on without adapters\n\
                    /quit                  leave; so do Ctrl-D and Ctrl-C\n\
                    /help                  this\n\
                    Ctrl-C while the model answers stops the answer.";
const FULL: &str = "The conversation fills the context. /reset starts a new one.";

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
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// The answer that Ctrl-C stops, while there is one.
type Running = Arc<Mutex<Option<CancelToken>>>;

pub(super) fn run(args: &ChatArgs, gpu: GpuOptions) -> Result<()> {
    let options = GenerateOptions { sampling: args.sampling.sampling()?, max_tokens: usize::MAX, ..Default::default() };
    let engine = args.model.open_with(gpu, &args.template)?;
    let running = Running::default();
    on_interrupt(Arc::clone(&running), Arc::clone(&engine))?;
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        output::note(&format!("{}\n/help lists the commands.", engine.gpu().description()));
    }
    let system: Vec<Message> = args.system.iter().map(|text| Message::new("system", text)).collect();
    let (mut session, mut messages) = (engine.session(), system.clone());
    Adapters::load(&args.adapters, &engine)?.apply(&mut session)?;
    loop {
        if terminal {
            output::prompt("> ");
        }
        let Some(line) = read_line()? else { break };
        match line.trim() {
            "" => {}
            "/quit" => break,
            "/help" => output::note(HELP),
            "/reset" => messages.clone_from(&system),
            command if command.split(' ').next() == Some("/adapter") => {
                // The conversation goes on with the adapters it had if these can't be had.
                if let Err(error) =
                    change_adapter(&mut session, command["/adapter".len()..].trim(), args.adapters.force)
                {
                    output::note(&format!("error: {error}"));
                }
            }
            command if command.starts_with('/') => output::note("There is no such command; /help lists them."),
            text => {
                messages.push(Message::new("user", text));
                answer(&mut session, &mut messages, options.clone(), &running)?;
            }
        }
    }
    Ok(())
}

/// Changes the adapter of the conversation, which is then read again under the new one.
fn change_adapter(session: &mut Session, adapter: &str, force: bool) -> Result<()> {
    let adapters = match adapter {
        "" => return Err(Error::InvalidArgument { name: "/adapter", reason: "give a path, or `off`".into() }),
        "off" => Adapters::default(),
        path => Adapters(vec![Weighted::parse(path.into()).load(session.engine(), force)?]),
    };
    adapters.apply(session)
}

/// Answers the last message. One that can't be answered leaves the conversation as it was.
fn answer(
    session: &mut Session,
    messages: &mut Vec<Message>,
    options: GenerateOptions,
    running: &Running,
) -> Result<()> {
    let cancel = CancelToken::default();
    set(running, Some(cancel.clone()));
    let answer = session
        .set_messages(messages)
        .and_then(|()| generate::answer(session, GenerateOptions { cancel, ..options }, output::text));
    set(running, None);
    match answer {
        Ok(answer) => {
            messages.push(Message::new("assistant", answer.text));
            output::text("\n")?;
            if answer.finish_reason == Some(FinishReason::ContextFull) {
                output::note(FULL);
            }
            Ok(())
        }
        Err(error) => {
            messages.pop();
            unanswered(error)
        }
    }
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

/// A line of standard input, empty if it is not UTF-8; `None` at its end.
fn read_line() -> Result<Option<String>> {
    let mut line = Vec::new();
    let read = std::io::stdin().lock().read_until(b'\n', &mut line).map_err(|e| Error::io("standard input", e))?;
    let text = String::from_utf8(line).unwrap_or_else(|_| {
        output::note("error: this line is not UTF-8; convert it");
        String::new()
    });
    Ok((read > 0).then_some(text))
}

fn set(running: &Running, cancel: Option<CancelToken>) {
    *running.lock().unwrap_or_else(PoisonError::into_inner) = cancel;
}

fn on_interrupt(running: Running, engine: Arc<Engine>) -> Result<()> {
    let handler = move || match &*running.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(cancel) => cancel.cancel(),
        None => {
            // The main thread waits for a line and can't be woken.
            engine.gpu().save_pipelines();
            output::note("");
            std::process::exit(0);
        }
    };
    ctrlc::set_handler(handler).map_err(|e| Error::io("Ctrl-C", std::io::Error::other(e)))
}
