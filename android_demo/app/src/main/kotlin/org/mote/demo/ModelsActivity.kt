package org.mote.demo

import android.app.Activity
import android.app.AlertDialog
import android.content.ActivityNotFoundException
import android.content.Intent
import android.os.Bundle
import android.view.View
import android.view.ViewGroup
import android.widget.BaseAdapter
import android.widget.ListView
import android.widget.ProgressBar
import android.widget.TextView
import android.widget.Toast
import org.mote.demo.data.Model
import org.mote.demo.ui.fitScreen
import org.mote.demo.ui.isShown

/** The models on this device: choose one, import one, delete one; and for one that cannot be used, why. */
class ModelsActivity : Activity() {
    private val application by lazy { DemoApplication.of(this) }
    private val library get() = application.modelLibrary
    private val adapter = ModelAdapter()
    private val onModels = ::show
    private val onModelState = { _: LoadedModel.State -> show() }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_list)
        showHeader(R.string.models)
        val list = findViewById<ListView>(R.id.list)
        val footer = layoutInflater.inflate(R.layout.models_footer, list, false)
        footer.findViewById<View>(R.id.import_folder).setOnClickListener { chooseFolder() }
        // As adb knows it, whatever the app itself calls it.
        footer.findViewById<TextView>(R.id.adb_hint).text =
            getString(R.string.adb_hint, "/sdcard/Android/data/$packageName/files/models")
        list.addFooterView(footer, null, false)
        list.adapter = adapter
        fitScreen(findViewById(R.id.screen), list)
        findViewById<View>(R.id.copying_cancel).setOnClickListener { library.cancelCopy() }
    }

    override fun onStart() {
        super.onStart()
        library.observe(onModels)
        application.loadedModel.observe(onModelState)
        library.refresh()
        show()
    }

    override fun onStop() {
        library.unobserve(onModels)
        application.loadedModel.unobserve(onModelState)
        super.onStop()
    }

    private fun show() {
        adapter.notifyDataSetChanged()
        val progress = library.progress
        findViewById<View>(R.id.copying).isShown(progress != null)
        if (progress != null) {
            findViewById<TextView>(R.id.copying_text).text = when {
                progress.isChecking -> getString(R.string.checking, progress.name)
                else -> getString(R.string.copying, progress.name, bytes(progress.bytes), bytes(progress.total))
            }
            findViewById<ProgressBar>(R.id.copying_progress).progress = (progress.bytes * 1000 / progress.total).toInt()
        }
        library.takeMessage()?.let(::say)
    }

    private fun choose(model: Model) {
        val key = library.keyOf(model) ?: return say(model.problem.orEmpty())
        library.choose(model)
        application.conversation.stop()
        application.loadedModel.require(key)
    }

    private fun chooseFolder() = try {
        startActivityForResult(Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), FOLDER)
    } catch (_: ActivityNotFoundException) {
        say(getString(R.string.no_folders))
    }

    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        super.onActivityResult(requestCode, resultCode, data)
        if (requestCode == FOLDER && resultCode == RESULT_OK) data?.data?.let(library::import)
    }

    private fun confirmDelete(model: Model) {
        val text = if (model.origin == Model.Origin.BUNDLED) R.string.delete_model_bundled else R.string.delete_model
        AlertDialog.Builder(this)
            .setMessage(getString(text, model.name, bytes(model.bytes)))
            .setNegativeButton(R.string.cancel, null)
            .setPositiveButton(R.string.delete) { _, _ -> library.delete(model) }
            .show()
    }

    private fun say(sentence: String) = Toast.makeText(this, sentence, Toast.LENGTH_LONG).show()

    private inner class ModelAdapter : BaseAdapter() {
        private val models get() = library.models.orEmpty()

        override fun getCount(): Int = models.size

        override fun getItem(position: Int): Model = models[position]

        override fun getItemId(position: Int): Long = position.toLong()

        override fun isEnabled(position: Int): Boolean = false

        override fun getView(position: Int, convertView: View?, parent: ViewGroup): View {
            val view = convertView ?: layoutInflater.inflate(R.layout.item_model, parent, false)
            val model = getItem(position)
            view.findViewById<TextView>(R.id.name).text = model.name
            val origin = when (model.origin) {
                Model.Origin.BUNDLED -> R.string.model_bundled
                Model.Origin.IMPORTED -> R.string.model_imported
                Model.Origin.PUSHED -> R.string.model_pushed
            }
            val runtimes = model.runtimes.joinToString { nameOf(it) }.ifEmpty { getString(R.string.none) }
            view.findViewById<TextView>(R.id.facts).text =
                getString(R.string.model_facts, getString(origin), bytes(model.bytes), runtimes)
            showLine(view.findViewById(R.id.experts), experts(model))
            showLine(view.findViewById(R.id.problem), model.problem ?: failure(model))
            view.findViewById<View>(R.id.chosen).isShown(model === library.current)
            view.findViewById<View>(R.id.card).apply {
                isSelected = model === library.current
                setOnClickListener { choose(model) }
            }
            val delete = view.findViewById<View>(R.id.delete)
            delete.contentDescription = getString(R.string.delete_named, model.name)
            delete.setOnClickListener { confirmDelete(model) }
            return view
        }

        private fun showLine(view: TextView, text: String?) {
            view.text = text
            view.isShown(text != null)
        }

        private fun experts(model: Model): String? = model.manifest?.moe?.run {
            getString(R.string.model_experts, layers.size, numExperts, packing, topK, sharedExpert)
        }

        /** What only opening it showed. */
        private fun failure(model: Model): String? =
            (application.loadedModel.state as? LoadedModel.State.Failed)
                ?.takeIf { it.key.folder == model.folder }?.sentence
    }

    private companion object {
        const val FOLDER = 1
    }
}
