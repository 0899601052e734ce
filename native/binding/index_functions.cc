// The prefix index's functions: check every argument, call the core, return. See index_functions.h.
#include "index_functions.h"

#include <sys/mman.h>

#include "arguments.h"
#include "attachments.h"
#include "prefix_index.h"

namespace millrace {
namespace {

napi_value to_number(napi_env env, int64_t number) {
  napi_value value = nullptr;
  napi_create_int64(env, number, &value);
  return value;
}

// The attachment of argument 0, or nullptr with a pending exception.
Attachment* attached(Arguments* arguments, AttachmentKind kind) {
  uint32_t handle = 0;
  if (!arguments->u32(0, "handle", &handle)) return nullptr;
  Attachment* attachment = Attachments::of(arguments->env()).find(handle, kind);
  if (attachment == nullptr) arguments->range_error("handle", "is not one of an index attached on this thread");
  return attachment;
}

IndexWriter* writer_of(Arguments* arguments) {
  Attachment* attachment = attached(arguments, AttachmentKind::kIndexWriter);
  return attachment == nullptr ? nullptr : attachment->index_writer.get();
}

bool read_holder(Arguments* arguments, uint32_t* holder) {
  if (!arguments->u32(1, "holder", holder)) return false;
  return *holder < kIndexHolders || arguments->range_error("holder", "must be below 4096");
}

bool read_tier(Arguments* arguments, size_t index, uint32_t* tier) {
  if (!arguments->u32(index, "tier", tier)) return false;
  return *tier < kIndexTiers || arguments->range_error("tier", "must be 0, 1 or 2");
}

// `count` entries of `words` words each in the array of an argument.
bool read_list(Arguments* arguments, size_t index, const char* name, uint32_t count, uint32_t words,
               WordArray<uint32_t>* list) {
  if (!arguments->uint32_array(index, name, list)) return false;
  return list->length / words >= count || arguments->range_error(name, "must hold as many entries as are counted");
}

bool is_null(Arguments* arguments, size_t index) {
  napi_valuetype type = napi_undefined;
  napi_typeof(arguments->env(), arguments->value(index), &type);
  return type == napi_null;
}

napi_value attach_index(napi_env env, napi_callback_info info, AttachmentKind kind) {
  Arguments arguments(env, info);
  WordArray<uint32_t> words;
  if (!arguments.uint32_array(0, "words", &words)) return nullptr;
  if (!words.shared) {
    arguments.range_error("words", "must be over a SharedArrayBuffer");
    return nullptr;
  }
  IndexView view;
  if (reinterpret_cast<uintptr_t>(words.words) % 64 != 0 || !view_index(words.words, words.length, &view)) {
    arguments.range_error("words", "must be a whole index segment from its first word on");
    return nullptr;
  }
  uint32_t handle = 0;
  Attachment* attachment =
      Attachments::of(env).add(env, kind, arguments.value(0), arguments.value(0), &handle);
  if (attachment == nullptr) {
    arguments.range_error("handles", "of this thread are all in use (255)");
    return nullptr;
  }
  if (kind == AttachmentKind::kIndexWriter) {
    // Probes go everywhere: with small pages most of them would miss the TLB as well. Only advice: may be refused.
#ifdef MADV_HUGEPAGE
    madvise(words.words, words.length * sizeof(uint32_t), MADV_HUGEPAGE);
#endif
    attachment->index_writer = std::make_unique<IndexWriter>(view);
  } else {
    attachment->index_reader = std::make_unique<IndexReader>(view);
  }
  return to_number(env, handle);
}

napi_value js_attach_index_writer(napi_env env, napi_callback_info info) {
  return attach_index(env, info, AttachmentKind::kIndexWriter);
}

napi_value js_attach_index_reader(napi_env env, napi_callback_info info) {
  return attach_index(env, info, AttachmentKind::kIndexReader);
}

napi_value js_index_holder(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info);
  uint32_t holder = 0;
  uint32_t change = 0;
  IndexWriter* writer = writer_of(&arguments);
  if (writer == nullptr || !read_holder(&arguments, &holder) || !arguments.u32(2, "change", &change)) return nullptr;
  if (change > 2) {
    arguments.range_error("change", "must be 0, 1 or 2");
    return nullptr;
  }
  const bool done = change == 0   ? writer->add_holder(holder)
                    : change == 1 ? writer->remove_holder(holder)
                                  : writer->clear_holder(holder);
  return to_number(env, done ? 1 : 0);
}

napi_value js_index_store(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info);
  uint32_t holder = 0;
  uint32_t has_parent = 0;
  uint32_t low = 0;
  uint32_t high = 0;
  uint32_t count = 0;
  uint32_t tier = 0;
  WordArray<uint32_t> hashes;
  WordArray<uint32_t> engine_hashes;
  IndexWriter* writer = writer_of(&arguments);
  if (writer == nullptr || !read_holder(&arguments, &holder) || !arguments.u32(2, "hasParent", &has_parent) ||
      !arguments.u32(3, "parentLow", &low) || !arguments.u32(4, "parentHigh", &high) ||
      !arguments.u32(6, "count", &count) || !read_list(&arguments, 5, "hashes", count, 2, &hashes) ||
      !read_tier(&arguments, 7, &tier) ||
      (!is_null(&arguments, 8) &&
       !read_list(&arguments, 8, "engineHashes", count, kIndexEngineHashWords, &engine_hashes))) {
    return nullptr;
  }
  return to_number(env, writer->store(holder, has_parent != 0, join_hash(low, high), hashes.words, count, tier,
                                      engine_hashes.words));
}

napi_value js_index_remove(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info);
  uint32_t holder = 0;
  uint32_t count = 0;
  uint32_t tier = 0;
  uint32_t by_engine_hash = 0;
  WordArray<uint32_t> hashes;
  IndexWriter* writer = writer_of(&arguments);
  if (writer == nullptr || !read_holder(&arguments, &holder) || !arguments.u32(3, "count", &count) ||
      !read_tier(&arguments, 4, &tier) || !arguments.u32(5, "byEngineHash", &by_engine_hash) ||
      !read_list(&arguments, 2, "hashes", count, by_engine_hash != 0 ? kIndexEngineHashWords : 2, &hashes)) {
    return nullptr;
  }
  return to_number(env, by_engine_hash != 0 ? writer->remove_engine(holder, hashes.words, count, tier)
                                            : writer->remove(holder, hashes.words, count, tier));
}

napi_value js_index_translate(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info);
  uint32_t holder = 0;
  uint32_t count = 0;
  WordArray<uint32_t> engine_hashes;
  WordArray<uint32_t> hashes;
  IndexWriter* writer = writer_of(&arguments);
  if (writer == nullptr || !read_holder(&arguments, &holder) || !arguments.u32(3, "count", &count) ||
      !read_list(&arguments, 2, "engineHashes", count, kIndexEngineHashWords, &engine_hashes) ||
      !read_list(&arguments, 4, "hashesOut", count, 2, &hashes)) {
    return nullptr;
  }
  return to_number(env, writer->translate(holder, engine_hashes.words, count, hashes.words));
}

napi_value js_index_predict(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info);
  uint32_t holder = 0;
  uint32_t from = 0;
  uint32_t to = 0;
  uint32_t low = 0;
  uint32_t high = 0;
  WordArray<uint32_t> hashes;
  IndexWriter* writer = writer_of(&arguments);
  if (writer == nullptr || !read_holder(&arguments, &holder) || !arguments.u32(3, "from", &from) ||
      !arguments.u32(4, "to", &to) || !read_list(&arguments, 2, "sequenceHashes", to, 2, &hashes) ||
      !arguments.u32(5, "expiresLow", &low) || !arguments.u32(6, "expiresHigh", &high)) {
    return nullptr;
  }
  if (from > to) {
    arguments.range_error("from", "must be at most to");
    return nullptr;
  }
  return to_number(env, writer->predict(holder, hashes.words, from, to, join_hash(low, high)));
}

napi_value js_index_expire(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info);
  uint32_t low = 0;
  uint32_t high = 0;
  IndexWriter* writer = writer_of(&arguments);
  if (writer == nullptr || !arguments.u32(1, "nowLow", &low) || !arguments.u32(2, "nowHigh", &high)) return nullptr;
  writer->expire(join_hash(low, high));
  return nullptr;
}

napi_value js_index_sweep(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info);
  uint32_t steps = 0;
  IndexWriter* writer = writer_of(&arguments);
  if (writer == nullptr || !arguments.u32(1, "stepsMax", &steps)) return nullptr;
  return to_number(env, writer->sweep(steps) ? 1 : 0);
}

napi_value js_index_stats(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info);
  WordArray<uint32_t> out;
  IndexWriter* writer = writer_of(&arguments);
  if (writer == nullptr || !read_list(&arguments, 1, "out", kIndexStatsCount, 2, &out)) return nullptr;
  writer->stats(out.words);
  return nullptr;
}

napi_value js_index_lookup(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info);
  uint32_t blocks = 0;
  uint32_t holder_count = 0;
  WordArray<uint32_t> hashes;
  WordArray<uint32_t> holders;
  WordArray<uint32_t> depths;
  Attachment* attachment = attached(&arguments, AttachmentKind::kIndexReader);
  if (attachment == nullptr || !arguments.u32(2, "blocks", &blocks) ||
      !read_list(&arguments, 1, "sequenceHashes", blocks, 2, &hashes) ||
      !arguments.u32(4, "holderCount", &holder_count) ||
      !read_list(&arguments, 3, "holders", holder_count, 1, &holders) ||
      !read_list(&arguments, 5, "depthsOut", holder_count, 2, &depths)) {
    return nullptr;
  }
  bool known = holder_count <= kIndexHolders;
  for (uint32_t i = 0; known && i < holder_count; i++) known = holders.words[i] < kIndexHolders;
  if (!known) {
    arguments.range_error("holders", "must be at most 4096 integers below 4096");
    return nullptr;
  }
  IndexReader& reader = *attachment->index_reader;
  const uint32_t given_up = reader.given_up();
  const uint32_t retries = reader.lookup(hashes.words, blocks, holders.words, holder_count, depths.words);
  return to_number(env, int64_t{reader.given_up() - given_up} << 32 | retries);
}

}  // namespace

bool export_index_functions(napi_env env, napi_value exports) {
  const struct {
    const char* name;
    napi_callback callback;
  } functions[] = {
      {"attachIndexWriter", js_attach_index_writer}, {"attachIndexReader", js_attach_index_reader},
      {"indexHolder", js_index_holder},              {"indexStore", js_index_store},
      {"indexRemove", js_index_remove},              {"indexTranslate", js_index_translate},
      {"indexPredict", js_index_predict},            {"indexExpire", js_index_expire},
      {"indexSweep", js_index_sweep},                {"indexStats", js_index_stats},
      {"indexLookup", js_index_lookup},
  };
  for (const auto& [name, callback] : functions) {
    napi_value function = nullptr;
    if (napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, nullptr, &function) != napi_ok ||
        napi_set_named_property(env, exports, name, function) != napi_ok) {
      return false;
    }
  }
  return true;
}

}  // namespace millrace
