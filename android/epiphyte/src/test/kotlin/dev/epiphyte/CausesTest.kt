package dev.epiphyte

import java.io.File
import kotlin.reflect.KClass
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertTrue
import kotlinx.coroutines.flow.take
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.TestFactory

/** Every cause of an error: what an app does to meet it, or why none can here. */
class CausesTest {
    /** Why a cause can't be brought about through this border on this machine. */
    private val outOfReach = mapOf(
        EpiphyteException.DeviceLost::class to "no driver here loses its device; tests/engine/lifecycle.rs makes one",
        EpiphyteException.Gpu::class to "no driver here refuses anything; tests/selftest.rs makes one",
        EpiphyteException.Internal::class to "it would be a fault; bindings/src/held.rs makes one, BorderTest another",
        EpiphyteException.Tokenizer::class to "what could be wrong with a GGUF's is an error of its metadata",
    )

    private val zeros = "\u0000".repeat(7)

    private val causes = mapOf<KClass<out EpiphyteException>, suspend (File) -> Unit>(
        EpiphyteException.AdapterBudget::class to { _ ->
            with(EngineOptions(adapterBudgetBytes = 16)) { it.loadAdapter("plain", peft("plain")) }
        },
        EpiphyteException.AdapterInUse::class to { _ ->
            with { engine ->
                engine.loadAdapter("plain", peft("plain"))
                engine.session().setAdapters("plain")
                engine.unloadAdapter("plain")
            }
        },
        EpiphyteException.AdapterMismatch::class to { folder ->
            restored(folder, "plain") { it.loadAdapter("plain", peft("attention")) }
        },
        EpiphyteException.AdapterNotLoaded::class to { folder -> restored(folder, "plain") { it.unloadAdapter("plain") } },
        EpiphyteException.AdapterSets::class to { _ ->
            with(EngineOptions(context = 64)) { engine ->
                engine.loadAdapter("plain", peft("plain"))
                for (set in 1..100_000) engine.session().setAdapters(listOf(AdapterWeight("plain", set / 1000f)))
            }
        },
        EpiphyteException.Background::class to { _ ->
            with { engine ->
                engine.background()
                engine.prompted().answer(1)
            }
        },
        EpiphyteException.BaseMismatch::class to { folder ->
            restored(folder) { it.tamper("epiphyte.base.1:", "epiphyte.base.1:0000") }
        },
        EpiphyteException.Busy::class to { _ ->
            val session = prompted()
            session.generate(greedy(2)).take(1).collect { session.pushText("more") }
        },
        EpiphyteException.Callback::class to { _ -> Engine.open(tinyModel) { error("mine") } },
        // Below the coroutine, whose own cancellation comes first.
        EpiphyteException.Cancelled::class to { _ ->
            val cancelled = CoreCancelToken().apply { cancel() }
            CoreEngine.open(ModelSource.Path(tinyModel.path), EngineOptions(), null, cancelled)
        },
        EpiphyteException.ChatTemplate::class to { _ ->
            with(EngineOptions(chatTemplate = "{{ raise_exception('no such role') }}")) {
                it.session().setMessages(Message.user("my secret"))
            }
        },
        EpiphyteException.Closed::class to { _ -> prompted().run { close(); pushText("more") } },
        EpiphyteException.ContextFull::class to { _ -> with(EngineOptions(context = 4)) { it.prompted("a long story") } },
        EpiphyteException.FingerprintVersion::class to { folder ->
            restored(folder) { it.tamper("epiphyte.base.1:", "epiphyte.base.9:") }
        },
        EpiphyteException.FormatVersion::class to { folder ->
            restored(folder) { it.tamper("epiphyte.session.", "epiphyte.session.9") }
        },
        EpiphyteException.InvalidAdapter::class to { folder ->
            peft("plain").copyRecursively(folder, overwrite = true)
            File(folder, "adapter_model.safetensors").tamper("0.self_attn.k_proj", "0.self_attn.x_proj")
            tiny().loadAdapter("tampered", folder)
        },
        EpiphyteException.InvalidArgument::class to { _ -> with(EngineOptions(context = -1)) { } },
        EpiphyteException.InvalidDelta::class to { folder ->
            tiny().applyVersion(tinyVersion, File(folder, "version"), accept.copy(trusted = listOf()))
        },
        EpiphyteException.InvalidFile::class to { folder ->
            Engine.open(File(folder, "model.gguf").apply { writeText("no model") })
        },
        EpiphyteException.InvalidMetadata::class to { folder -> openTampered(folder, "llama.block_count", "tnuoc_kcolb.amall") },
        EpiphyteException.InvalidTensor::class to { folder ->
            // One that holds other weights: smaller than the model's sizes say.
            openTampered(folder, "blk.0.attn_q.weight", "blk.0.attn_X.weight", "blk.0.attn_k.weight", "blk.0.attn_q.weight")
        },
        EpiphyteException.Io::class to { _ -> Engine.open(File("/nowhere/model.gguf")) },
        EpiphyteException.MissingTensor::class to { folder ->
            openTampered(folder, "blk.0.attn_q.weight", "blk.0.attn_X.weight")
        },
        EpiphyteException.NoGpu::class to { _ -> with(EngineOptions(gpu = "no such device")) { } },
        EpiphyteException.OutOfMemory::class to { folder ->
            // What 16 million tokens of a pass take, no buffer here holds.
            tiny().trainer(lesson(folder).copy(microBatch = 1 shl 18)).run()
        },
        EpiphyteException.OverBudget::class to { _ ->
            Engine.memoryPlan(ModelSource.Path(tinyModel.path), MemoryPlanOptions(memoryBudgetBytes = 1000))
        },
        EpiphyteException.SuperLink::class to { _ ->
            FlowerClient.open(SigningKey.generate(KeyKind.P256)).use { client ->
                client.poll()
                client.answer(FlowerAnswer(404, null, ByteArray(0)))
                client.poll()
            }
        },
        EpiphyteException.Training::class to { folder ->
            tiny().trainer(lesson(folder, 50).copy(learningRate = 1e30, maxGradNorm = 0.0)).run()
        },
        EpiphyteException.Unsupported::class to { folder -> openTampered(folder, "\u0005$zeros" + "llama", "\u0005$zeros" + "mambo") },
    )

    private suspend fun with(options: EngineOptions = EngineOptions(context = 128), use: suspend (Engine) -> Unit) =
        Engine.open(tinyModel, options).use { use(it) }

    private suspend fun openTampered(folder: File, vararg changes: String) {
        val model = tinyModel.copyTo(File(folder, "model.gguf"))
        changes.asList().chunked(2).forEach { (old, new) -> model.tamper(old, new) }
        Engine.open(model)
    }

    /** Saves a session, changes its file, and reads it again. */
    private suspend fun restored(folder: File, change: (File) -> Unit) {
        val file = File(folder, "session")
        prompted().save(file)
        change(file)
        tiny().restore(file)
    }

    /** Saves a session with an adapter, changes the adapters, and reads it again. */
    private suspend fun restored(folder: File, adapter: String, change: suspend (Engine) -> Unit) = with { engine ->
        val file = File(folder, "session")
        engine.loadAdapter(adapter, peft(adapter))
        engine.session().use { session ->
            session.setAdapters(adapter)
            session.pushText(PROMPT)
            session.save(file)
        }
        change(engine)
        engine.restore(file)
    }

    @TestFactory
    fun `each is met`(): List<DynamicTest> = causes.map { (cause, meet) ->
        dynamicTest(cause.simpleName) {
            running { withFolder { folder -> assertEquals(cause.simpleName, thrown { meet(folder) }::class.simpleName) } }
        }
    }

    @Test
    fun `none is left out`() {
        val all = EpiphyteException::class.java.declaredClasses.filter { EpiphyteException::class.java.isAssignableFrom(it) }
        assertEquals(all.map { it.simpleName }.sorted(), (causes.keys + outOfReach.keys).map { it.simpleName!! }.sorted())
        assertTrue(causes.keys.none { it in outOfReach })
        for ((cause, why) in outOfReach) println("not met here: ${cause.simpleName}: $why")
    }
}
