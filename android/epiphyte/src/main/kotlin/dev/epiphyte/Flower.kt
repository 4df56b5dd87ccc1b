package dev.epiphyte

import kotlinx.coroutines.Deferred
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.withTimeoutOrNull

/** Carries a node's requests to its SuperLink. */
public fun interface FlowerTransport {
    /** Makes a `POST` to the SuperLink's address and the [request]'s path; null where no answer came. */
    public suspend fun post(request: FlowerRequest): FlowerAnswer?
}

/** What an app does for a node of Flower. */
public interface FlowerApp {
    /** Stores [state] in place of what was stored, whole or not at all, before it returns. */
    public suspend fun save(state: ByteArray)

    /**
     * Does a task. It is cancelled when nobody waits for the task any more. What it throws ends
     * [FlowerClient.run], and the same task comes again at the next start; answer with
     * [FlowerReply.Refused] what is not to be tried again.
     */
    public suspend fun work(task: FlowerTask): FlowerReply

    /** The last task is over. */
    public suspend fun over(end: FlowerEnd) {}
}

/**
 * A node of Flower. It makes no request itself: [run] carries out its steps, or the app does with
 * [poll], [answer] and [reply].
 */
public class FlowerClient private constructor(
    private val core: CoreFlowerClient,
    private val listening: Listening,
    private val now: () -> Long,
) : AutoCloseable {
    /** Rings when there is something to do before a wait is over. */
    private val bell = Channel<Unit>(Channel.CONFLATED)

    @Volatile
    private var isLeaving = false

    /**
     * Takes part until it has left: makes its requests by [transport], keeps it online while [app]
     * works. Cancelling the coroutine is as good as being killed: what was saved goes on after
     * another [open].
     *
     * Throws [EpiphyteException.SuperLink] when there is no usable answer for as long as the options
     * allow, and what [app] throws.
     */
    public suspend fun run(app: FlowerApp, transport: FlowerTransport): Unit = coroutineScope {
        var work: Deferred<FlowerReply>? = null
        while (true) {
            if (isLeaving) work = work.dropped()
            when (val step = poll()) {
                is FlowerStep.Save -> app.save(step.state)
                is FlowerStep.Send -> answer(transport.post(step.request))
                is FlowerStep.Wait -> when {
                    work == null || !work.isCompleted -> withTimeoutOrNull(step.millis) { bell.receive() }
                    else -> {
                        reply(work.await())
                        work = null
                    }
                }
                is FlowerStep.Work -> {
                    work = async { app.work(step.task) }
                    work.invokeOnCompletion { bell.trySend(Unit) }
                }
                is FlowerStep.Over -> {
                    work = work.dropped()
                    app.over(step.end)
                }
                is FlowerStep.Left -> {
                    work.dropped()
                    break
                }
            }
        }
    }

    /** What to do next. What the signer throws is the cause of [EpiphyteException.Callback]. */
    public suspend fun poll(): FlowerStep = listening.during { core.poll(now()) }

    /** Takes what came of a request that was to be sent; null where no answer came. */
    public suspend fun answer(answer: FlowerAnswer?): Unit = calling { core.answer(now(), answer) }

    /** The work is done, or can't be. Saved and sent by the next steps. */
    public suspend fun reply(reply: FlowerReply): Unit = calling { core.reply(now(), reply) }

    /**
     * Leaves, by the next steps, from whatever coroutine. A reply that is being sent is sent first, a
     * task that is being worked on is given up; a second call leaves at once.
     */
    public suspend fun leave(how: FlowerLeave) {
        isLeaving = true
        calling { core.leave(how) }
        bell.trySend(Unit)
    }

    /** How it stands. */
    public suspend fun status(): FlowerStatus = calling { core.status() }

    /** Frees it. */
    override fun close(): Unit = core.close()

    private suspend fun Deferred<FlowerReply>?.dropped(): Deferred<FlowerReply>? {
        this?.cancelAndJoin()
        return null
    }

    public companion object {
        /**
         * A node of [signer]'s key, which must be on P-256, as it was when [saved] was last stored;
         * null for a new one. [now] is the device's clock, in milliseconds since 1970.
         */
        public suspend fun open(
            signer: Signer,
            saved: ByteArray? = null,
            options: FlowerOptions = FlowerOptions(),
            now: () -> Long = System::currentTimeMillis,
        ): FlowerClient {
            val listening = Listening()
            val callback = listening.signing(signer)
            return FlowerClient(listening.during { CoreFlowerClient.open(callback, saved, options) }, listening, now)
        }
    }
}
