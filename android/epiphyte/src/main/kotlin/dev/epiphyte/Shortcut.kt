package dev.epiphyte

import com.sun.jna.CallbackReference
import com.sun.jna.Memory
import com.sun.jna.Native
import com.sun.jna.Pointer
import java.nio.ByteBuffer
import kotlin.coroutines.resume
import kotlinx.coroutines.suspendCancellableCoroutine

/** Tokens by the shortest way: `bindings/src/shortcut.rs` says why, and what the calls do. */
internal object Shortcut {
    private const val ROOM = 4096
    private const val HEAD = 8

    /** One of the calls below, of one answer. */
    fun interface Take {
        fun take(buffer: Pointer, room: Int, wake: Pointer, task: Long): Int
    }

    init {
        Native.register(Shortcut::class.java, "epiphyte_bindings")
    }

    external fun epiphyte_generation_take(
        handle: Long, buffer: Pointer, room: Int, wake: Pointer, task: Long,
    ): Int

    external fun epiphyte_batch_generation_take(
        handle: Long, buffer: Pointer, room: Int, wake: Pointer, task: Long,
    ): Int

    private val wake = CallbackReference.getFunctionPointer(uniffiRustFutureContinuationCallbackImpl)

    /** Gives [each] the tokens that [take] leaves, and what [next] says where that has none, to the end. */
    suspend inline fun pull(
        take: Take,
        next: () -> BatchToken?,
        each: (BatchToken) -> Unit,
    ) = Memory(ROOM.toLong()).use { memory ->
        val buffer = memory.getByteBuffer(0, ROOM.toLong())
        while (true) {
            val size = size(take, memory)
            each(if (size > 0) token(buffer, size) else next() ?: break)
        }
    }

    /** Waits until there is something; its size, or less than 0 where it is no token. */
    private suspend fun size(take: Take, memory: Memory): Int {
        var size = 0
        while (size == 0) {
            suspendCancellableCoroutine { task ->
                val waiting = uniffiContinuationHandleMap.insert(task)
                size = take.take(memory, ROOM, wake, waiting)
                if (size != 0) uniffiContinuationHandleMap.remove(waiting).resume(UNIFFI_RUST_FUTURE_POLL_READY)
            }
        }
        return size
    }

    private fun token(buffer: ByteBuffer, size: Int): BatchToken {
        val text = ByteArray(size - HEAD)
        buffer.position(HEAD).get(text).rewind()
        return BatchToken(buffer.getInt(0), Token(buffer.getInt(4), text.decodeToString()))
    }
}
