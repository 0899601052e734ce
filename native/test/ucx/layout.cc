// The declarations of native/transport/ucx_api.h against the headers of an installed UCX: this file compiles only when
// every offset, size and value is the same. Compiled by the check where libucx-dev is installed; nothing of it runs.
#include <ucp/api/ucp.h>
#include <ucs/debug/log_def.h>

#include <type_traits>

#include "../../transport/ucx_api.h"

namespace millrace::kv {

#define SAME_FIELD(ours, field, theirs, their_field)                                   \
  static_assert(offsetof(ours, field) == offsetof(theirs, their_field) &&              \
                sizeof(ours::field) == sizeof(theirs::their_field), #theirs "." #their_field)
#define SAME_VALUE(ours, theirs) static_assert(static_cast<uint64_t>(ours) == static_cast<uint64_t>(theirs), #theirs)

static_assert(sizeof(ucs_status_t) == sizeof(UcsStatus), "a status is one byte");
static_assert(kUcsOk == UCS_OK && kUcsBusy == UCS_ERR_BUSY && kUcsErrorsMax == -UCS_ERR_LAST);

SAME_VALUE(kUcsPrintConfig, UCS_CONFIG_PRINT_CONFIG);
SAME_VALUE(kUcsLogStop, UCS_LOG_FUNC_RC_STOP);
static_assert(std::is_same_v<ucs_log_func_t, ucs_log_func_rc_t (*)(const char*, unsigned, const char*, ucs_log_level_t,
                                                                  const ucs_log_component_config_t*, const char*, va_list)> &&
              sizeof(ucs_log_func_rc_t) == sizeof(int) && sizeof(ucs_log_level_t) == sizeof(int));

SAME_FIELD(UcpParams, field_mask, ucp_params_t, field_mask);
SAME_FIELD(UcpParams, features, ucp_params_t, features);
SAME_FIELD(UcpParams, mt_workers_shared, ucp_params_t, mt_workers_shared);
SAME_VALUE(kUcpParamFeatures, UCP_PARAM_FIELD_FEATURES);
SAME_VALUE(kUcpParamMtWorkersShared, UCP_PARAM_FIELD_MT_WORKERS_SHARED);
SAME_VALUE(kUcpFeatureRma, UCP_FEATURE_RMA);
SAME_VALUE(kUcpFeatureWakeup, UCP_FEATURE_WAKEUP);
SAME_VALUE(kUcpFeatureAm, UCP_FEATURE_AM);

SAME_FIELD(UcpWorkerParams, field_mask, ucp_worker_params_t, field_mask);
SAME_FIELD(UcpWorkerParams, thread_mode, ucp_worker_params_t, thread_mode);
SAME_VALUE(kUcpWorkerThreadMode, UCP_WORKER_PARAM_FIELD_THREAD_MODE);
SAME_VALUE(kUcsThreadSerialized, UCS_THREAD_MODE_SERIALIZED);

SAME_FIELD(UcpEndpointParams, field_mask, ucp_ep_params_t, field_mask);
SAME_FIELD(UcpEndpointParams, address, ucp_ep_params_t, address);
SAME_FIELD(UcpEndpointParams, error_mode, ucp_ep_params_t, err_mode);
SAME_FIELD(UcpEndpointParams, error_callback, ucp_ep_params_t, err_handler.cb);
SAME_FIELD(UcpEndpointParams, error_argument, ucp_ep_params_t, err_handler.arg);
SAME_VALUE(kUcpEndpointAddress, UCP_EP_PARAM_FIELD_REMOTE_ADDRESS);
SAME_VALUE(kUcpEndpointErrorMode, UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE);
SAME_VALUE(kUcpEndpointErrorHandler, UCP_EP_PARAM_FIELD_ERR_HANDLER);
SAME_VALUE(kUcpErrorModeNone, UCP_ERR_HANDLING_MODE_NONE);
SAME_VALUE(kUcpErrorModePeer, UCP_ERR_HANDLING_MODE_PEER);
SAME_VALUE(kUcpCloseForce, UCP_EP_CLOSE_FLAG_FORCE);

SAME_FIELD(UcpMemoryParams, field_mask, ucp_mem_map_params_t, field_mask);
SAME_FIELD(UcpMemoryParams, address, ucp_mem_map_params_t, address);
SAME_FIELD(UcpMemoryParams, length, ucp_mem_map_params_t, length);
SAME_FIELD(UcpMemoryParams, flags, ucp_mem_map_params_t, flags);
SAME_VALUE(kUcpMemoryAddress, UCP_MEM_MAP_PARAM_FIELD_ADDRESS);
SAME_VALUE(kUcpMemoryLength, UCP_MEM_MAP_PARAM_FIELD_LENGTH);
SAME_VALUE(kUcpMemoryFlags, UCP_MEM_MAP_PARAM_FIELD_FLAGS);
SAME_VALUE(kUcpMemoryAllocate, UCP_MEM_MAP_ALLOCATE);
SAME_FIELD(UcpMemoryAttributes, field_mask, ucp_mem_attr_t, field_mask);
SAME_FIELD(UcpMemoryAttributes, address, ucp_mem_attr_t, address);
SAME_FIELD(UcpMemoryAttributes, length, ucp_mem_attr_t, length);
SAME_VALUE(kUcpMemoryAddress, UCP_MEM_ATTR_FIELD_ADDRESS);
SAME_VALUE(kUcpMemoryLength, UCP_MEM_ATTR_FIELD_LENGTH);

SAME_FIELD(UcpRequestParams, attributes, ucp_request_param_t, op_attr_mask);
SAME_FIELD(UcpRequestParams, flags, ucp_request_param_t, flags);
SAME_FIELD(UcpRequestParams, callback, ucp_request_param_t, cb);
SAME_FIELD(UcpRequestParams, user_data, ucp_request_param_t, user_data);
SAME_FIELD(UcpRequestParams, memory, ucp_request_param_t, memh);
SAME_VALUE(kUcpOpCallback, UCP_OP_ATTR_FIELD_CALLBACK);
SAME_VALUE(kUcpOpUserData, UCP_OP_ATTR_FIELD_USER_DATA);
SAME_VALUE(kUcpOpFlags, UCP_OP_ATTR_FIELD_FLAGS);
SAME_VALUE(kUcpOpMemory, UCP_OP_ATTR_FIELD_MEMH);
SAME_VALUE(kUcpOpMultiSend, UCP_OP_ATTR_FLAG_MULTI_SEND);
SAME_VALUE(kUcpAmEager, UCP_AM_SEND_FLAG_EAGER);

SAME_FIELD(UcpAmReceived, attributes, ucp_am_recv_param_t, recv_attr);
SAME_FIELD(UcpAmReceived, reply_endpoint, ucp_am_recv_param_t, reply_ep);
SAME_VALUE(kUcpAmRendezvous, UCP_AM_RECV_ATTR_FLAG_RNDV);
SAME_FIELD(UcpAmHandler, field_mask, ucp_am_handler_param_t, field_mask);
SAME_FIELD(UcpAmHandler, id, ucp_am_handler_param_t, id);
SAME_FIELD(UcpAmHandler, flags, ucp_am_handler_param_t, flags);
SAME_FIELD(UcpAmHandler, callback, ucp_am_handler_param_t, cb);
SAME_FIELD(UcpAmHandler, argument, ucp_am_handler_param_t, arg);
SAME_VALUE(kUcpAmHandlerId, UCP_AM_HANDLER_PARAM_FIELD_ID);
SAME_VALUE(kUcpAmHandlerCallback, UCP_AM_HANDLER_PARAM_FIELD_CB);
SAME_VALUE(kUcpAmHandlerArgument, UCP_AM_HANDLER_PARAM_FIELD_ARG);

}  // namespace millrace::kv
