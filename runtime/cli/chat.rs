//! `epiphyte chat`: a conversation. Ctrl-C stops the answer, or leaves where there is none.

use std::io::{BufRead, IsTerminal};
use std::sync::Arc;

use clap::Args;

use super::adapter::{AdapterArgs, Adapters, Weighted};
use super::{ModelArgs, SamplingArgs, generate, interrupt, output};
use crate::chat::Message;
use crate::engine::{FinishReason, GenerateOptions, Session};
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
    adapters: AdapterArgs,
    /// The system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub(super) fn run(args: &ChatArgs, gpu: GpuOptions) -> Result<()> {
    let options = GenerateOptions { sampling: args.sampling.sampling()?, max_tokens: usize::MAX, ..Default::default() };
    let engine = args.model.open(gpu)?;
    // The main thread waits for a line and can't be woken.
    let shared = Arc::clone(&engine);
    interrupt::before_leaving(move || {
        shared.gpu().save_pipelines();
        output::note("");
    });
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
                answer(&mut session, &mut messages, options.clone())?;
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
fn answer(session: &mut Session, messages: &mut Vec<Message>, options: GenerateOptions) -> Result<()> {
    let stop = interrupt::listen("");
    let options = GenerateOptions { cancel: stop.token.clone(), ..options };
    let answer = session.set_messages(messages).and_then(|()| generate::answer(session, options, output::text));
    drop(stop);
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
