package dev.epiphyte

import java.io.File
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.StateFlow

/**
 * One base model in memory, shared by any number of [Session]s. Usable from any thread, and nothing
 * blocks the calling one. Keep one for the whole app.
 */
public class Engine private constructor(private val core: CoreEngine) : AutoCloseable {
    /** An empty session. */
    public fun session(): Session = Session(calling { core.session() }, this)

    /**
     * A session from a file that [Session.save] wrote; its adapters have to be loaded under the ids
     * they had.
     */
    public suspend fun restore(file: File): Session = Session(calling { core.restore(file.path) }, this)

    /**
     * Reads an adapter and puts it on the device under [id]. One of that id is replaced; sessions
     * that use it go on with it until their adapters are set again.
     */
    public suspend fun loadAdapter(id: String, source: AdapterSource): LoadReport =
        calling { core.loadAdapter(id, source) }

    /** As above, from PEFT's folder, a safetensors file with the config inside, or a GGUF LoRA. */
    public suspend fun loadAdapter(id: String, from: File): LoadReport =
        loadAdapter(id, AdapterSource.Path(from.path))

    /** Forgets an adapter that no session uses. */
    public suspend fun unloadAdapter(id: String): Unit = calling { core.unloadAdapter(id) }

    /** The adapters that are loaded, by id. */
    public suspend fun adapters(): List<AdapterState> = calling { core.adapters() }

    /** What the file of a loaded adapter held; null for an id that is not loaded. */
    public suspend fun adapterReport(id: String): LoadReport? = calling { core.adapterReport(id) }

    /** Runs [prompt] with and without an adapter. Throws when it changes nothing. */
    public suspend fun probeAdapter(id: String, prompt: String): AdapterProbe =
        calling { core.probeAdapter(id, prompt) }

    /** Tokens of [text] as it stands, with what the tokenizer puts before the first. */
    public suspend fun countTokens(text: String): Int = calling { core.countTokens(text) }

    /** The prompt for a conversation, as the model's chat template writes it. */
    public suspend fun renderChat(
        messages: List<Message>,
        options: PromptOptions = PromptOptions(),
    ): String = calling { core.renderChat(messages, options) }

    /** Answers of several sessions of this engine, computed together. */
    public fun batch(sequences: List<BatchSequence>): Flow<BatchToken> = batchOf(core, sequences)

    /** A training run on this engine's model; [Trainer.run] begins it, or goes on with it. */
    public fun trainer(options: TrainOptions): Trainer =
        Trainer(calling { core.trainer(options) }, this)

    /**
     * Checks a published version of an adapter and writes it as PEFT's folder, for [loadAdapter] and
     * for `init` of [TrainOptions]. A version that is refused leaves the folder as it was.
     */
    public suspend fun applyVersion(version: File, folder: File, options: AcceptOptions): AdapterVersion =
        calling { core.applyVersion(version.path, folder.path, options) }

    /** Most tokens of a session. */
    public val context: Int get() = calling { core.context() }

    /** The device on a line: name, backend, driver. */
    public val device: String get() = calling { core.device() }

    /** Bytes of device memory that everything of this engine takes now, training included. */
    public val deviceBytes: Long get() = calling { core.deviceBytes() }

    /** The same by what it is for. */
    public val classBytes: List<ClassBytes> get() = calling { core.classBytes() }

    /** What the device has done so far; of a start, the kernels that were tested and compiled. */
    public val counters: DeviceWork get() = calling { core.counters() }

    /** Names the loaded model: what adapters and saved sessions are made for. */
    public val fingerprint: String get() = calling { core.fingerprint() }

    /** Whether the self-test found that the device computes training right. */
    public val trains: Boolean get() = calling { core.trains() }

    /** What the engine is and what has befallen it; after [close], what it was last. */
    public val state: StateFlow<EngineState> = States(core)

    /**
     * Gives memory back to the phone. All comes back when it is next needed, and nothing that is said
     * or learnt changes by it.
     */
    public suspend fun memoryPressure(level: MemoryLevel): MemoryReport =
        calling { core.memoryPressure(level) }

    /** Tells how hot the device is: training slows down, then pauses; then answers rest as well. */
    public fun thermal(state: ThermalState): Unit = calling { core.thermal(state) }

    /**
     * Lets the GPU rest until [foreground]. What needs it throws [EpiphyteException.Background] and
     * can be called again then; training waits. The one call that waits where it is called, for what
     * the GPU has been given: tens of milliseconds.
     */
    public fun background(): Unit = calling { core.background() }

    /** Ends [background]. */
    public fun foreground(): Unit = calling { core.foreground() }

    /**
     * Closes it with all its sessions, answers and training runs, which throw
     * [EpiphyteException.Closed] from now on. Never waits: [closed] does. A second close does nothing.
     */
    override fun close(): Unit = core.shut()

    /** Returns once the engine is closed and its memory free. */
    public suspend fun closed(): Unit = calling { core.closed() }

    public companion object {
        init {
            keepThreads()
        }

        /**
         * Opens the GPU, checks its driver and loads a model. Takes seconds the first time on a
         * driver; cancelling the coroutine stops it, with nothing left of it. [onProgress] is called
         * on a thread of the library's; what it throws ends the call.
         */
        public suspend fun open(
            model: ModelSource,
            options: EngineOptions = EngineOptions(),
            onProgress: ((LoadProgress) -> Unit)? = null,
        ): Engine {
            val listening = Listening()
            val listener = onProgress?.let {
                object : LoadListener {
                    override fun onProgress(progress: LoadProgress) = listening.hear { it(progress) }
                }
            }
            return listening.during { Engine(CoreEngine.open(model, options, listener, cancel = null)) }
        }

        /** Adds up what a model takes on this device, and a training run beside it; loads no weight. */
        public suspend fun memoryPlan(
            model: ModelSource,
            options: MemoryPlanOptions = MemoryPlanOptions(),
        ): MemoryPlan = calling { dev.epiphyte.memoryPlan(model, options) }

        /** As above, from a GGUF file, or the first of its shards. */
        public suspend fun open(
            model: File,
            options: EngineOptions = EngineOptions(),
            onProgress: ((LoadProgress) -> Unit)? = null,
        ): Engine = open(ModelSource.Path(model.path), options, onProgress)
    }
}
