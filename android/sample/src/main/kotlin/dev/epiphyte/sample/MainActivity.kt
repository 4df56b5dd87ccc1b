package dev.epiphyte.sample

import android.app.Activity
import android.os.Bundle
import android.view.View
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.Spinner
import android.widget.TextView
import dev.epiphyte.ModelSource
import dev.epiphyte.android.Epiphyte
import dev.epiphyte.android.follow
import java.io.File
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.MainScope
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch

/**
 * One screen: pick a feature, ask, watch the answer stream, teach three examples. Push a model to
 * the app's files folder as `model.gguf`, and adapters to `adapters`.
 */
class MainActivity : Activity() {
    private val scope: CoroutineScope = MainScope()
    private lateinit var assistant: Assistant
    private var running: Job? = null
    private var signals: AutoCloseable? = null

    private val feature by lazy { Spinner(this) }
    private val prompt by lazy { field("What is an epiphyte?") }
    private val answer by lazy { TextView(this) }
    private val name by lazy { field("mine") }
    private val lessons by lazy {
        listOf("What is our cat called?" to "Pixel", "When does the choir sing?" to "On Thursdays at eight", "Who waters the ferns?" to "Ada")
            .map { (question, answer) -> field(question) to field(answer) }
    }
    private val status by lazy { TextView(this) }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        Epiphyte.start(this)
        assistant = Assistant(ModelSource.Path(File(filesDir, "model.gguf").path), emptyMap(), File(filesDir, "adapters"))
        setContentView(layout())
        scope.launch {
            assistant.open()
            signals = assistant.engine?.follow(this@MainActivity, scope)
        }
        scope.launch { assistant.screen.collect(::show) }
    }

    override fun onDestroy() {
        scope.cancel()
        signals?.close()
        assistant.close()
        super.onDestroy()
    }

    private fun ask() = run {
        val chosen = feature.selectedItemPosition - 1
        assistant.ask(prompt.text.toString(), assistant.screen.value.features.getOrNull(chosen))
    }

    private fun teach() = run {
        val taught = lessons.map { (question, answer) -> Lesson(question.text.toString(), answer.text.toString()) }
        assistant.teach(name.text.toString(), taught)
    }

    /** One thing at a time: what is running ends first. */
    private fun run(work: suspend () -> Unit) {
        val before = running
        running = scope.launch {
            before?.cancel()
            before?.join()
            work()
        }
    }

    private fun show(screen: Screen) {
        val features = listOf("no feature") + screen.features
        if (feature.count != features.size) {
            feature.adapter = ArrayAdapter(this, android.R.layout.simple_spinner_dropdown_item, features)
        }
        answer.text = screen.answer
        val speed = screen.tokensPerSecond?.let { "%.1f tokens/s".format(it) }
        val loss = screen.losses.lastOrNull()?.let { "step ${screen.losses.size}, loss %.3f".format(it) }
        status.text = screen.problem ?: listOfNotNull("loading".takeIf { !screen.ready }, speed, loss).joinToString()
    }

    private fun layout(): View {
        val column = LinearLayout(this).apply { orientation = LinearLayout.VERTICAL }
        val rows = listOf(feature, prompt, button("Ask", ::ask), answer, name) +
            lessons.flatMap { it.toList() } + button("Teach", ::teach) + button("Stop") { running?.cancel() } + status
        rows.forEach(column::addView)
        return ScrollView(this).apply { addView(column) }
    }

    private fun field(text: String) = EditText(this).apply { setText(text) }

    private fun button(text: String, press: () -> Unit) = Button(this).apply {
        this.text = text
        setOnClickListener { press() }
    }
}
