package dev.epiphyte

import com.sun.jna.CallbackThreadInitializer
import com.sun.jna.Native
import java.nio.charset.CharacterCodingException
import kotlinx.coroutines.CancellationException

/**
 * Runs a call of the library. What keeps a text from crossing the border, and a panic that the
 * library did not turn into an error itself, are errors of its own here.
 */
internal inline fun <T> calling(call: () -> T): T = try {
    call()
} catch (half: CharacterCodingException) {
    val hint = "cut texts between characters, not within a surrogate pair"
    val message = "a text holds half a character, which is no Unicode; $hint"
    throw EpiphyteException.InvalidArgument(message, hint, "text").apply { initCause(half) }
} catch (panic: InternalException) {
    val hint = "this is a fault of Epiphyte: report it with what was called"
    val message = "a call failed unexpectedly; $hint"
    throw EpiphyteException.Internal(message, hint).apply { initCause(panic) }
}

/**
 * Carries what an app's own code throws around the library, which calls it: the call that the code
 * was given to ends in [EpiphyteException.Callback] with it as the cause, or in the cancellation that
 * it was.
 */
internal class Listening {
    private var thrown: Throwable? = null

    fun <R> hear(listener: () -> R): R = try {
        listener()
    } catch (e: Throwable) {
        thrown = e
        throw EpiphyteException.Callback("a listener threw", "catch it in the listener")
    }

    inline fun <R> during(call: () -> R): R = try {
        calling(call)
    } catch (error: EpiphyteException.Callback) {
        val cause = thrown
        throw if (cause is CancellationException) cause else error.apply { cause?.let(::initCause) }
    }
}

/**
 * Keeps the library's threads known to the JVM until they end. By itself JNA introduces a thread anew
 * each time that it wakes a coroutine, which takes longer than all the rest of a token's way.
 */
internal fun keepThreads() {
    val daemons = CallbackThreadInitializer(true, false, "epiphyte")
    Native.setCallbackThreadInitializer(uniffiRustFutureContinuationCallbackImpl, daemons)
}
