//! Android: the app's folders and memory class, and log lines to logcat. The only JNI.
//!
//! In: a `Context`. Loading the library does nothing; no GPU is touched before an engine is opened.

use std::ffi::{CString, c_char, c_int};

use jni::errors::{Result, ThrowRuntimeExAndDefault};
use jni::objects::{JClass, JObject, JString};
use jni::strings::JNIStr;
use jni::{Env, EnvUnowned, jni_sig, jni_str};
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::app::{self, AppInfo};

const TAG: &std::ffi::CStr = c"Epiphyte";

/// `dev.epiphyte.android.Native.start(Context)`: tells of the app, and sends log lines to logcat
/// from now on. Once is enough.
#[unsafe(no_mangle)]
pub extern "system" fn Java_dev_epiphyte_android_Native_start<'local>(
    mut env: EnvUnowned<'local>,
    _class: JClass<'local>,
    context: JObject<'local>,
) {
    let started = env.with_env(|env| -> Result<()> {
        app::tell(app_info(env, &context)?);
        // Another library of the app may have a logger already.
        if log::set_logger(&Logcat).is_ok() {
            log::set_max_level(LevelFilter::Info);
        }
        Ok(())
    });
    started.resolve::<ThrowRuntimeExAndDefault>();
}

fn app_info(env: &mut Env<'_>, context: &JObject<'_>) -> Result<AppInfo> {
    let service = JString::from_str(env, "activity")?;
    let manager = env
        .call_method(
            context,
            jni_str!("getSystemService"),
            jni_sig!("(Ljava/lang/String;)Ljava/lang/Object;"),
            &[(&service).into()],
        )?
        .l()?;
    let mebibytes = env.call_method(manager, jni_str!("getMemoryClass"), jni_sig!("()I"), &[])?;
    Ok(AppInfo {
        files_dir: folder(env, context, jni_str!("getFilesDir"))?,
        cache_dir: folder(env, context, jni_str!("getCacheDir"))?,
        memory_class_bytes: i64::from(mebibytes.i()?) << 20,
    })
}

/// The path of the `File` that a method of the context gives.
fn folder(env: &mut Env<'_>, context: &JObject<'_>, method: &JNIStr) -> Result<String> {
    let file = env.call_method(context, method, jni_sig!("()Ljava/io/File;"), &[])?.l()?;
    let (name, signature) = (jni_str!("getAbsolutePath"), jni_sig!("()Ljava/lang/String;"));
    let path = env.call_method(file, name, signature, &[])?.l()?;
    env.cast_local::<JString<'_>>(path)?.try_to_string(env)
}

#[link(name = "log")]
unsafe extern "C" {
    fn __android_log_write(priority: c_int, tag: *const c_char, text: *const c_char) -> c_int;
}

/// Lines of this library and of what it is made of.
struct Logcat;

impl Log for Logcat {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // What others say may be as loud as they like: only warnings are kept.
        let ours = metadata.target().starts_with("epiphyte");
        metadata.level() <= if ours { Level::Info } else { Level::Warn }
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // ANDROID_LOG_INFO is 4, warnings and errors follow.
        let priority = match record.level() {
            Level::Error => 6,
            Level::Warn => 5,
            _ => 4,
        };
        let text = CString::new(record.args().to_string().replace('\0', " ")).unwrap_or_default();
        // SAFETY: both texts end with a zero and live until it returns.
        unsafe { __android_log_write(priority, TAG.as_ptr(), text.as_ptr()) };
    }

    fn flush(&self) {}
}
